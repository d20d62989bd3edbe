"""Replicas: which strategy trains, and code that runs on one replica as if it were alone.

Keras' optimizers, layers and metrics are written for plain variables. `on_replica` gives them
plain ones: inside it every Keras variable is the replica's own copy and no strategy is in force.
So one replica's forward pass, or update, can be traced and compiled like that of a single device.
"""

import concurrent.futures
import contextlib
import contextvars
import os
from collections.abc import Callable

import keras
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib  # no public way out of a scope

from tfmp import workers
from tfmp.errors import UserError

STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")

_index = contextvars.ContextVar("replica_index", default=None)

# Keys of the groups of devices that add up within programs, and of the first sum of each;
# strategies' own count from 1.
_FIRST_GROUP = 2**20
_groups: dict[tuple[str, ...], int] = {}


def resolve(name: str, start_timeout: float = 300.0) -> tf.distribute.Strategy:
    """The strategy of a name.

    Args:
        name: "none"; "mirrored", over all GPUs, or without one over all logical CPUs;
            "multi_worker", over the GPUs of all workers that TF_CONFIG or Slurm's variables name,
            or their CPUs; "tpu", the one that TPU_NAME names, or else this machine's; or "auto":
            multi_worker where several workers are named, tpu where TPU_NAME is set, mirrored where
            there are several GPUs.
        start_timeout: Seconds to wait for other workers.

    Returns:
        A `tf.distribute.Strategy`; for none, TensorFlow's default one, whose scope does nothing.

    Raises:
        UserError: The name is unknown, the GPUs are of different kinds, no workers are named or
            they can't be joined, or there is no TPU.
    """
    if name not in STRATEGIES:
        raise UserError(f"Expected a strategy out of {', '.join(STRATEGIES)}. Received: {name!r}.")
    found = workers.in_environment() if name in ("auto", "multi_worker") else None
    if name == "multi_worker" and not found:
        raise UserError(
            "--strategy=multi_worker expects TF_CONFIG, or the variables of a Slurm step, to name "
            "the workers. Received neither. On one machine: `python -m tfmp launch -n 2 -- "
            "python -m tfmp.recipes.resnet`."
        )
    if found and (name == "multi_worker" or found.count > 1):
        return workers.connect(found, start_timeout)
    if name == "tpu" or (name == "auto" and os.environ.get("TPU_NAME")):
        return _tpu(os.environ.get("TPU_NAME") or "local")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    cards = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(card) for card in cards]
    _check_same_kind([str(d.get("device_name", "unknown GPU")) for d in details])
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    # NCCL takes no two ranks on one card.
    shared = len(gpus) > len(cards)
    reduction = tf.distribute.HierarchicalCopyAllReduce() if shared else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _tpu(name: str) -> tf.distribute.TPUStrategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            "Expected a TPU: this machine's, for a TensorFlow with TPU support, or one that "
            f"TPU_NAME names. Received none at {name!r} ({why}). Take another --strategy."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether replicas are those of a TPU, which compiles one program for all of them."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def _check_same_kind(names: list[str]) -> None:
    if len(set(names)) > 1:
        raise UserError(
            "Expected GPUs of one kind: replicas advance together, at the pace of the slowest. "
            f"Received: {', '.join(names)}. Choose equal ones by CUDA_VISIBLE_DEVICES, or "
            "--strategy=none for the first alone."
        )


def worker(strategy: tf.distribute.Strategy) -> workers.Worker:
    """This process among those of a strategy."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return workers.ALONE
    return workers.in_environment() or workers.ALONE


def first_replica(strategy: tf.distribute.Strategy) -> int:
    """Position of this process' first replica among those of all workers."""
    return getattr(strategy.extended, "_id_in_cluster", 0) * len(devices(strategy))


def placed_ahead(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset, count: int
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Batches for the replicas of one process, which wait on each device: a call's, and one more.

    Args:
        strategy: The strategy that trains.
        batches: Whole batches.
        count: Batches that a call from the host takes.
    """
    # A TPU's program takes its batches as it goes.
    if strategy.num_replicas_in_sync == 1 or is_tpu(strategy):
        return batches
    options = tf.distribute.InputOptions(experimental_per_replica_buffer_size=count + 1)
    return strategy.experimental_distribute_dataset(batches, options)


def own_parts(
    strategy: tf.distribute.Strategy, batches: Callable, batch_size: int, ahead: int = 1
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Batches for `fit`, of which each worker makes its own part alone.

    (TensorFlow's own sharding would have each worker decode all examples and drop most of them.)

    Args:
        strategy: The strategy that trains.
        batches: `batches(part=(i, n))` gives an endless `tf.data.Dataset` of the i-th n-th of each
            batch; `batches()` whole ones.
        batch_size: Examples in a whole batch.
        ahead: Batches that a call from the host takes, where there is one process.
    """
    if worker(strategy).count == 1:
        return placed_ahead(strategy, batches(), ahead)
    size = batch_size // strategy.num_replicas_in_sync

    def of_worker(context):
        part = context.input_pipeline_id, context.num_input_pipelines
        of_replicas = batches(part=part).rebatch(size, drop_remainder=True)
        # That there is no end makes the size of a batch known to the compiler.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return of_replicas.apply(endless)

    return strategy.distribute_datasets_from_function(of_worker)


def check_batch_size(batch_size: int, replicas: int, parts: int = 1) -> None:
    """Checks that a global batch splits evenly.

    Args:
        batch_size: Examples in a training step, of all replicas together.
        replicas: Number of replicas.
        parts: Parts in which each replica computes its share.

    Raises:
        UserError: It does not; names the next sizes that do.
    """
    unit = replicas * parts
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = " or ".join(str(size) for size in (below, above) if size)
        shares = f"{replicas} replicas" + (f" in {parts} parts each" if parts > 1 else "")
        raise UserError(
            f"Expected a batch size that {shares} can share evenly. Received: {batch_size}. Take "
            f"{nearest}."
        )


def devices(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
    """Devices of the replicas of this process; one empty name for TensorFlow's own default."""
    try:
        return strategy.extended.worker_devices
    except RuntimeError:  # the default strategy has none
        return ("",)


def copies(strategy: tf.distribute.Strategy, variable: keras.Variable) -> tuple[tf.Variable, ...]:
    """A Keras variable's plain copies, one for each replica of this process.

    Raises:
        UserError: There is one copy for several replicas: the variable was not made in the scope.
    """
    found = strategy.experimental_local_results(variable._value)
    if len(found) != len(devices(strategy)):
        raise UserError(
            f"Expected a variable of {len(devices(strategy))} replicas. Received: "
            f"{variable.path}, a variable made outside of the strategy. Make model, optimizer and "
            "metrics within `with strategy.scope():`."
        )
    return found


@contextlib.contextmanager
def on_replica(strategy, index, variables, optimizers=()):
    """Inside, Keras variables are one replica's plain copies, and no strategy is in force.

    Traced into a `tf.function`, what runs inside belongs to that replica for good. Not for code
    that talks to other replicas.

    Args:
        strategy: The strategy in whose scope the variables were made.
        index: Position of the replica among this process' own.
        variables: All Keras variables that the code inside may touch.
        optimizers: Keras optimizers that it may run.
    """
    plain = [copies(strategy, v)[index] for v in variables]
    mirrored = [v._value for v in variables]
    strategies = [optimizer._distribution_strategy for optimizer in optimizers]
    token = _index.set(first_replica(strategy) + index)
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        for variable, value in zip(variables, plain, strict=True):
            variable._value = value
        for optimizer in optimizers:
            vars(optimizer)["_distribution_strategy"] = tf.distribute.get_strategy()
        yield
    finally:
        distribute_lib._pop_per_thread_mode()
        _index.reset(token)
        for variable, value in zip(variables, mirrored, strict=True):
            variable._value = value
        for optimizer, former in zip(optimizers, strategies, strict=True):
            vars(optimizer)["_distribution_strategy"] = former


def variable_on(device: str, shape: tuple, dtype: tf.DType) -> tf.Variable:
    """A variable of zeros that one device has, also in a strategy's scope or a function's trace.

    Args:
        device: The device's name.
        shape: The variable's shape.
        dtype: Its dtype.
    """

    def make():
        with tf.device(device):
            return tf.Variable(tf.zeros(shape, dtype), trainable=False)

    # Neither scope nor trace reaches into another thread; there is no other public way out.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def replica_index() -> int | tf.Tensor:
    """Position, of all replicas, of the one whose code is traced or run; 0 without a strategy.

    On a TPU, where one program is that of all, a scalar int64 tensor.
    """
    index = _index.get()
    if index is not None:
        return index
    context = tf.distribute.get_replica_context()
    if not context:
        return 0
    known = tf.get_static_value(context.replica_id_in_sync_group)
    return tf.cast(context.replica_id_in_sync_group, tf.int64) if known is None else int(known)


def replica_sum(x: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas; for the replica context of their strategy."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def sum_within_xla(x: tf.Tensor, number: int = 0) -> tf.Tensor:
    """`replica_sum`, by NCCL as a part of each replica's XLA program; see `sums_within_xla`.

    Each sum of a program needs the one before, directly or not: XLA compiles each replica's program
    by itself, and sums in another order than in another replica's would wait forever.

    All that the program takes lies on its device. A strategy's own sum takes a number from the host
    at each call, its instance key, which XLA doesn't look at; TensorFlow copies it when the GPU has
    done all that it has been given, and starts the program behind that.

    Args:
        x: Tensor of the same shape and dtype on all replicas.
        number: Position of the sum in the program.
    """
    strategy = tf.distribute.get_replica_context().strategy
    # The same key in each worker, since all make the same strategies in the same order.
    group = _groups.setdefault(devices(strategy), _FIRST_GROUP * (1 + len(_groups)))
    return tf.raw_ops.CollectiveReduceV2(
        input=x,
        group_size=strategy.num_replicas_in_sync,
        group_key=group,
        instance_key=group + number,
        ordering_token=[],
        merge_op="Add",
        final_op="Id",
    )


def sums_within_xla(strategy: tf.distribute.Strategy) -> bool:
    """Whether the sum over the replicas can be a part of an XLA program, by NCCL.

    So it is under a MirroredStrategy or MultiWorkerMirroredStrategy whose replicas have GPUs of
    their own, unless it was made with other `cross_device_ops`, or told to take the ring, which
    TensorFlow would ignore there. For CPUs TensorFlow refuses to compile it.
    """
    kinds = {tf.DeviceSpec.from_string(device).device_type for device in devices(strategy)}
    if kinds != {"GPU"}:
        return False
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        asked = strategy.extended._communication_options.implementation
        able = asked != tf.distribute.experimental.CommunicationImplementation.RING
        gpus = devices(strategy)  # (the list of all has other workers' too)
    elif isinstance(strategy, tf.distribute.MirroredStrategy):
        able = strategy.extended._cross_device_ops is strategy.extended._collective_ops
        gpus = tf.config.list_logical_devices("GPU")
    else:
        return False
    return able and len(gpus) <= len(tf.config.get_visible_devices("GPU"))


def has_synchronized_batch_norm(model: keras.Model) -> bool:
    """Whether some layer takes its batch statistics over all replicas."""
    return any(getattr(layer, "synchronized", False) for layer in model._flatten_layers())


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes every BatchNormalization take its statistics over all replicas' batches.

    Args:
        model: A Keras model, changed in place, before its first training step.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
