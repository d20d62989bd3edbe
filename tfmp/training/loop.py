"""`fit`: Keras' `fit` with exact resume, saving, guarding and timing around it."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import sys

import keras
import tensorflow as tf

from tfmp import compile_cache, distribution, files, hardware, workers
from tfmp.data import DataError, crops, to_device
from tfmp.errors import OutOfMemoryError, TfmpError, UserError
from tfmp.training import callbacks, loading, same_data
from tfmp.training.checkpoints import Checkpoints
from tfmp.training.stopwatch import Stopwatch
from tfmp.training.tracer import Tracer

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
ALLOCATION = re.compile(rf"allocat\w* (\d+(?:\.\d+)?) ?({'|'.join(UNITS)})")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` measured in this process.

    Attributes:
        compile_seconds: The first step's tracing, compiling and running.
        seconds_before: Seconds of the run in earlier processes, up to the checkpoint.
        seconds_per_epoch: Training seconds of each epoch of this process, the first step apart.
        examples_per_second: Of the steps in `seconds_per_epoch`; None where there was none.
        seconds: Seconds of `fit`, compiling, validation and saving included, up to the checkpoint
            in earlier processes.
        joules: Energy of `seconds`; None where it, or an earlier process', is not known.
        joules_before: Energy of `seconds_before`; None where it is not known.
        watts: Mean power of the steps in `seconds_per_epoch`; None where it is not known.
    """

    compile_seconds: float
    seconds_before: float
    seconds_per_epoch: tuple[float, ...]
    examples_per_second: float | None
    seconds: float
    joules: float | None
    joules_before: float | None
    watts: float | None


def fit(learner, data, config, workdir, *, resume_hint="", extra_callbacks=(), power=None):
    """Trains to the end of `config.epochs`, from the last checkpoint if there is one.

    A resumed run goes on at the very step of its checkpoint: with `deterministic` its weights
    become, bit for bit, those of a run that was never stopped.

    Args:
        learner: A compiled `tfmp.training.Learner`.
        data: A `tfmp.data.Data`.
        config: A `tfmp.training.TrainingConfig`.
        workdir: Folder for `checkpoints/`, `metrics.csv` and `tensorboard/`.
        resume_hint: What the message of a stopped run tells the user to do.
        extra_callbacks: Further Keras callbacks.
        power: `tfmp.power.Sampler` that runs, to know the energy; None: it is not known.

    Returns:
        A `Fitted`.

    Raises:
        UserError: The batch is larger than the training set, the folder can't be written, or
            early stopping has no validation examples.
        NonFiniteError: Loss or weights became non-finite for good.
        PeerError: Another worker was lost.
        StoppedError: A signal asked to stop; the state is saved.
        OutOfMemoryError: The step doesn't fit into the device's memory.
        TfmpError: A file can't be written.
    """
    workdir = pathlib.Path(workdir)
    epoch_steps = config.epoch_steps(data.sizes["train"])
    if config.early_stopping and data.validation is None:
        raise UserError(
            "--early_stopping needs validation examples: --validation_fraction above 0."
        )
    worker = distribution.worker(learner.distribute_strategy)
    if worker.is_chief:
        describe(learner, data, config, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", learner)
    metrics = checkpoints.restore()
    stopwatch = Stopwatch(
        float(checkpoints.seconds.numpy()),
        float(checkpoints.joules.numpy()),
        power,
        compiled_calls=2 if config.trace_every > 1 else 1,
    )
    log = workdir / "metrics.csv"
    if worker.is_chief:
        files.keep_epochs(log, int(learner.step) // epoch_steps)
    _compare(worker, learner, data, checkpoints)
    guard = callbacks.NonFiniteGuard(epoch_steps, checkpoints)
    stop = workers.Stop(worker, int(learner.step))
    saver = callbacks.Checkpointer(
        checkpoints, guard, stopwatch, stop, config.save_every_steps, resume_hint
    )
    logger = keras.callbacks.CSVLogger(log if worker.is_chief else os.devnull, append=True)
    # Logs are completed before they are written, and written before the epoch counts as done.
    every = [callbacks.StepLogs(epoch_steps), stopwatch, guard, logger]
    every += _optional(config, learner, workdir, log, worker)
    board = workdir / "tensorboard" if config.tensorboard else None
    tracer = Tracer(workdir, config.trace_every, board) if config.trace_every else None
    every += [*extra_callbacks, *filter(None, [tracer]), saver]
    learner.stop_training = callbacks.has_stopped_early(
        config.early_stopping, log, learner.monitor, learner.monitor_mode, worker
    )
    with _naming_what_is_kept(workdir), contextlib.ExitStack() as ends:
        ends.callback(stop.close)
        ends.callback(logger.on_train_end)
        ends.callback(saver.on_train_end)
        if tracer:
            ends.callback(tracer.finish)
        with naming_errors(config, learner.model, worker):
            _train(learner, data, config, epoch_steps, checkpoints, metrics, every)
    return Fitted(
        compile_seconds=stopwatch.compile,
        seconds_before=stopwatch.before,
        seconds_per_epoch=tuple(stopwatch.per_epoch),
        examples_per_second=stopwatch.steps * config.batch_size / sum(stopwatch.per_epoch)
        if stopwatch.steps
        else None,
        seconds=stopwatch.seconds(),
        joules=_known(stopwatch.joules()),
        joules_before=_known(stopwatch.joules_before),
        watts=_known(stopwatch.watts()),
    )


def describe(learner, data, config, workdir):
    """Makes the run's folder, with what `--resume` and `tfmp.load` know the run by.

    Args:
        learner: A compiled `tfmp.training.Learner`.
        data: A `tfmp.data.Data`.
        config: A `tfmp.training.TrainingConfig`.
        workdir: Path of the folder.

    Raises:
        UserError: The folder can't be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", dataclasses.asdict(config))
        same_data.describe(data, workdir)
        loading.describe(learner, workdir)
    except OSError as error:
        raise UserError(f"Can't use --workdir={workdir}: {error}.") from None


def _compare(worker, learner, data, checkpoints):
    """Holds the workers to the same data, step and weights, such as of one checkpoint."""
    workers.agree(
        worker,
        "state",
        {
            "the data": f"{data.name} {data.sizes} {data.origin}".strip(),
            "the step": int(learner.step),
            "the checksum of weights and optimizer": checkpoints.checksum(),
        },
        "All have to read the same data, and the chief's checkpoints: --workdir has to be one "
        "folder, on a file system that all workers share.",
    )


def _verbosity(learner):
    """What Keras calls `verbose`; of several workers only the chief shows the progress."""
    if not distribution.worker(learner.distribute_strategy).is_chief:
        return 0
    return 1 if sys.stdout.isatty() else 2


def _known(value):
    return None if math.isnan(value) else value


def _train(learner, data, config, epoch_steps, checkpoints, metrics, every):
    """Calls Keras' `fit` until the last epoch is done, and once more for an epoch half done."""
    step = int(learner.step)
    # An epoch that a run of other steps a call has begun ends with a call, too.
    learner.steps_per_execution = math.gcd(learner.steps_per_execution, step % epoch_steps)
    while step < config.epochs * epoch_steps and not learner.stop_training:
        epoch, done = divmod(step, epoch_steps)
        strategy = learner.distribute_strategy
        batches = functools.partial(_batches, data, config, step)
        with strategy.scope():
            batches = distribution.own_parts(
                strategy, batches, config.batch_size, ahead=learner.steps_per_execution
            )
            validation = data.validation and to_device(data.validation(config.batch_size))
        # A begun epoch gets a call of its own: Keras takes one length for all.
        epochs = epoch + 1 if done else config.epochs
        learner.fit(
            batches,
            initial_epoch=epoch,
            epochs=epochs,
            steps_per_epoch=epoch_steps - done,
            validation_data=validation,
            callbacks=callbacks.Callbacks(
                [_RestoreMetrics(checkpoints, metrics), *every] if done else every,
                verbose=_verbosity(learner),
                epochs=epochs,
                steps=epoch_steps - done,
                model=learner,
            ),
            shuffle=False,
        )
        step = int(learner.step)
        if done and config.ema:
            checkpoints.restore()  # Keras ends each `fit` with the averages as weights
    if config.ema:
        learner.optimizer.finalize_variable_values(learner.trainable_variables)


def _batches(data, config, step, **part):
    """Batches from a step on, as the device wants them."""
    settings = {"start_step": step, "multiple_of": config.steps_per_execution or 1, **part}
    return to_device(data.train(config.batch_size, seed=config.seed, **settings))


@contextlib.contextmanager
def naming_errors(config, model, worker=workers.ALONE):
    """Turns TensorFlow's errors that a user can mend into errors that say how.

    Args:
        config: The run's `TrainingConfig`.
        model: The model that runs inside.
        worker: This process, a `tfmp.workers.Worker`.

    Raises:
        PeerError: Another worker was lost.
        OutOfMemoryError: The device's memory ran out.
        DataError: An image could not be read or decoded.
        TfmpError: The compile cache failed.
    """
    try:
        with workers.naming_lost_peers(worker):
            yield
    except tf.errors.OpError as error:
        if explanation := compile_cache.explain(error.message):
            raise TfmpError(explanation) from error
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise _out_of_memory(error, config, model) from None
        damage = crops.damage(error)
        if damage is None:
            raise
        raise DataError(
            f"An image of {config.dataset} is damaged or gone: {damage}. Remove or replace it."
        ) from error


@contextlib.contextmanager
def _naming_what_is_kept(workdir):
    """Turns the error of a file, as on a full disk, into one that says what is kept."""
    try:
        yield
    except OSError as error:
        raise TfmpError(
            f"Can't go on with {workdir}: {error}. The last checkpoint, if any, is kept; mend this "
            "and go on with --resume."
        ) from error


class _RestoreMetrics(keras.callbacks.Callback):
    """Gives the metrics of a begun epoch, which Keras resets, their values back."""

    def __init__(self, checkpoints, values):
        super().__init__()
        self._checkpoints = checkpoints
        self._values = values

    def on_epoch_begin(self, epoch, logs=None):
        self._checkpoints.set_metrics(self._values)


def _optional(config, learner, workdir, log, worker):
    if config.ema:
        yield keras.callbacks.SwapEMAWeights()
    if config.early_stopping:
        yield callbacks.EarlyStopping(
            config.early_stopping, log, learner.monitor, learner.monitor_mode, worker
        )
    if config.tensorboard and worker.is_chief:
        yield keras.callbacks.TensorBoard(workdir / "tensorboard", update_freq="epoch")


def _out_of_memory(error, config, model):
    """The error to raise for TensorFlow's: what was asked for, and what would fit.

    XLA asks for the memory of the whole step at once, in proportion to the batch; without XLA
    the message knows one tensor only, and half the batch is the next one to try.
    """
    limit = hardware.memory_limit_bytes() or 0
    asked = max(
        (float(n) * 2 ** (10 * UNITS.index(u)) for n, u in ALLOCATION.findall(error.message)),
        default=0,
    )
    # Where memory is short XLA has computed things twice to save up to a quarter of it; the
    # batch to propose should do without.
    share = 0.7 * limit / asked if asked > limit > 0 else 0.5
    batch = max(1, int(config.batch_size * share))
    batch = batch // 8 * 8 or batch
    return OutOfMemoryError(
        f"Out of memory on the device: a training step of --batch_size={config.batch_size} under "
        f"{model.dtype_policy.name} does not fit into {limit / 2**30:.1f} GiB. "
        f"A batch that should fit: --batch_size={batch}."
    )
