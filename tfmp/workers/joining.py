"""How the workers meet, and how each learns that another is lost."""

import atexit
import contextlib
import os
import socket
import sys
import threading
import time

import tensorflow as tf

# No public way to set the time limits of the coordination service.
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from tfmp.errors import PeerError, UserError
from tfmp.workers.identity import Worker, name

HEARTBEAT_S = 10  # of silence, and a worker counts as lost
GRACE_S = 20  # for a program to leave by itself once a worker is lost
LOOK_S = 2  # between two looks at the others
LOST = (
    "a worker was lost, or ended with an error of its own (see its log). Start all workers again "
    "with the same flags and --resume."
)
LOSSES = tf.errors.UnavailableError | tf.errors.AbortedError | tf.errors.CancelledError

# A process joins once: TensorFlow has no way back.
_joined: dict[Worker, tf.distribute.MultiWorkerMirroredStrategy] = {}
_over = threading.Event()


def connect(worker: Worker, start_timeout: float) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits for all workers and makes the strategy that joins them.

    Call it before TensorFlow looks for devices. From then on a lost worker ends this process with
    exit status 75: collectives fail, and where the program doesn't notice it is ended.

    Args:
        worker: This process.
        start_timeout: Seconds to wait for the others.

    Raises:
        UserError: The port is taken, a worker is missing, or TensorFlow had started before.
    """
    if worker in _joined:
        if _over.is_set():
            _watch(worker)
        return _joined[worker]
    if context.context()._context_handle is not None:
        raise UserError("Workers have to be joined before TensorFlow's first operation.")
    _meet(worker, start_timeout)
    # As MultiWorkerMirroredStrategy would configure it, but for the time limits.
    jobs = _jobs(worker)
    leader = "chief" if "chief" in jobs else "worker"
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        heartbeat_timeout_in_ms=HEARTBEAT_S * 1000,
        cluster_register_timeout_in_ms=int(start_timeout * 1000),
        shutdown_barrier_timeout_in_ms=HEARTBEAT_S * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=len(hosts))
            for job, hosts in sorted(jobs.items())
        ],
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs),
        task_type=worker.job,
        task_id=worker.task,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    with _limit(start_timeout + HEARTBEAT_S, UserError.exit_status, "the workers didn't join"):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, communication())
    atexit.register(_leave_early)
    _watch(worker)
    _joined[worker] = strategy
    return strategy


def communication() -> tf.distribute.experimental.CommunicationOptions:
    """By what workers add up: NCCL where they have GPUs.

    Left to choose, TensorFlow 2.21 takes its ring over gRPC for GPUs, too, by way of the host:
    its executor asks for NCCL by name (`CollectiveParamResolverLocal::AssignCollectiveType`).

    References:
        https://github.com/tensorflow/tensorflow/issues/50178
    """
    implementations = tf.distribute.experimental.CommunicationImplementation
    gpus = tf.config.list_physical_devices("GPU")
    return tf.distribute.experimental.CommunicationOptions(
        implementation=implementations.NCCL if gpus else implementations.AUTO
    )


def _jobs(worker) -> dict[str, list[str]]:
    """Addresses by kind: a chief of a kind of its own is the first of all."""
    if worker.job == "chief" or worker.index != worker.task:
        chief, *others = worker.addresses
        return {"chief": [chief], "worker": others} if others else {"chief": [chief]}
    return {"worker": [*worker.addresses]}


def _meet(worker, start_timeout):
    """Waits until every worker listens at its address; TensorFlow would wait for ever."""
    port = int(worker.addresses[worker.index].rpartition(":")[2])
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{name(worker.index)} can't listen at {worker.addresses[worker.index]}: {error}. "
                "Choose another port, or end what uses it."
            ) from None
        own.listen(worker.count)
        end = time.monotonic() + start_timeout
        missing = [i for i in range(worker.count) if i != worker.index]
        while missing := [i for i in missing if not _listens(worker.addresses[i])]:
            if time.monotonic() > end:
                names = ", ".join(f"{name(i)} ({worker.addresses[i]})" for i in missing)
                raise UserError(
                    f"Waited {start_timeout:g} s for {names}. Start all {worker.count} workers, "
                    "or give them more --start_timeout."
                )
            time.sleep(0.2)


def _listens(address):
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), port), 2):
        return True
    return False


@contextlib.contextmanager
def _limit(seconds, status, message):
    """Ends the process, whatever it does, if what runs inside takes longer."""
    timer = threading.Timer(seconds, _end, (status, message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(status, message):
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


# --- losing


def _watch(worker):
    """Looks at the others from a thread, since a program in a collective hears nothing else."""
    _over.clear()
    jobs = [(job, len(hosts)) for job, hosts in _jobs(worker).items()]
    seen = [time.monotonic()]

    def look():
        while not _over.wait(LOOK_S):
            try:
                lost = [x for x in context.context().get_task_states(jobs) if x]
            except tf.errors.OpError as error:
                lost = [error]
            if not lost:
                seen[0] = time.monotonic()

    def judge():
        while not _over.wait(LOOK_S):
            if time.monotonic() - seen[0] > HEARTBEAT_S + GRACE_S:
                _end(PeerError.exit_status, LOST)

    for run in (look, judge):
        threading.Thread(target=run, daemon=True, name=f"workers: {run.__name__}").start()


def leave() -> None:
    """Ends the look at the others: from now on this process may end in the ordinary way."""
    _over.set()


def is_joined() -> bool:
    """Whether others wait for this process: it can't leave in the ordinary way then.

    TensorFlow's own clean-up would wait for them, for ever. A process that is gone at once is
    missed within HEARTBEAT_S.
    """
    return bool(_joined) and not _over.is_set()


def _leave_early():
    """Ends a process that crashed, after its traceback."""
    if is_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


@contextlib.contextmanager
def naming_lost_peers(worker: Worker):
    """Turns TensorFlow's error of a collective that a worker was missing from into one of ours.

    Raises:
        PeerError: A worker was lost.
    """
    try:
        yield
    except tf.errors.OpError as error:
        maybe = isinstance(error, tf.errors.InternalError | tf.errors.DeadlineExceededError)
        lost = isinstance(error, LOSSES) or (maybe and "ollective" in error.message)
        if worker.count == 1 or not lost:
            raise
        raise PeerError(f"{name(worker.index)}: {LOST}") from error
