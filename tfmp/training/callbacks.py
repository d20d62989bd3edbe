"""Keras callbacks of a training run: what it logs and saves, and when it stops.

All per-step work is in `on_train_batch_begin`, before the device gets its next step.
"""

import json
import math
import pathlib
import signal
import sys
import threading
import time

import keras
import tensorflow as tf

from tfmp import distribution, loss_scale, workers
from tfmp.errors import NonFiniteError, StoppedError
from tfmp.files import read_metrics

PROGRESS_SECONDS = 0.5  # between two looks of the progress bar at the device
ADVICE = (
    "Look for NaN and infinities in inputs and targets first. Then try a lower --learning_rate or "
    "a longer --warmup_epochs, and --policy=float32 to see whether half precision is the cause."
)


class Callbacks(keras.callbacks.CallbackList):
    """Keras' list of callbacks, without its wait for the device at every step.

    Keras 3.15 makes Python numbers of the logs after every step on TensorFlow, whoever wants
    them, so that a GPU idles while the host prepares the next step. Here `on_train_batch_end`
    gets tensors, and the progress bar numbers now and then.

    Args:
        callbacks: List of Keras callbacks.
        **kwargs: As for `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, **kwargs):
        super().__init__(callbacks, add_history=True, add_progbar=True, **kwargs)
        self._shown = 0.0

    def on_train_batch_end(self, batch, logs=None):
        """Calls the callbacks."""
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.ProgbarLogger):
                callback.on_train_batch_end(batch, logs=logs)
            elif time.monotonic() - self._shown >= PROGRESS_SECONDS:
                callback.on_train_batch_end(batch, logs={k: float(v) for k, v in logs.items()})
                self._shown = time.monotonic()


class StepLogs(loss_scale.LossScaleLogger):
    """Adds derived figures, learning rate, loss scale and its counters to each epoch's logs.

    Loss and metrics of an epoch without a good step become NaN.

    Args:
        steps_per_epoch: Training steps of a whole epoch.
    """

    def __init__(self, steps_per_epoch):
        super().__init__()
        self._steps_per_epoch = steps_per_epoch

    def on_epoch_end(self, epoch, logs=None):
        """Adds to the logs, which the callbacks behind this one read."""
        if skipped_all(self.model, self._steps_per_epoch):
            logs |= {name: math.nan for name in logs if not name.startswith("val_")}
        for prefix in ("", "val_"):
            means = {k.removeprefix(prefix): v for k, v in logs.items() if k.startswith(prefix)}
            if "loss" in means:
                logs |= {prefix + k: v for k, v in self.model.derived(means).items()}
        logs["learning_rate"] = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))
        super().on_epoch_end(epoch, logs)


def skipped_all(model, steps):
    """Whether the last so many steps were skipped, by any optimizer of a model."""
    optimizers = [x for x in loss_scale.scaled_optimizers_of(model) if x.built]
    return any(int(x.consecutive_skips.numpy()) >= steps for x in optimizers)


class NonFiniteGuard(loss_scale.LossScaleGuard):
    """Ends training that will not recover from non-finite values.

    That is: too many skipped steps in a row, a single one where the scale can't adapt, or a
    non-finite weight or BatchNorm statistic. Looks every 100 calls of the step, after each epoch,
    and when `check` is called.

    Args:
        steps_per_epoch: Training steps of a whole epoch, for the message.
        checkpoints: `Checkpoints` whose last one the message names.

    Raises:
        NonFiniteError: In `fit`; names epoch, step and loss scale.
    """

    def __init__(self, steps_per_epoch, checkpoints):
        super().__init__()
        self._steps_per_epoch = steps_per_epoch
        self._checkpoints = checkpoints
        self._weights_finite = None

    def set_model(self, model):
        """Takes over from the optimizer how many skipped steps are too many."""
        super().set_model(model)
        if not loss_scale.is_dynamic(model.optimizer):
            self.max_consecutive_skips = 0

    def check(self):
        """Looks at the counters and all weights."""
        self.check_steps()
        if self._weights_finite is None:
            self._weights_finite = tf.function(_all_finite)
        weights = [v.value for v in self.model.variables if "float" in v.dtype]
        if not self._weights_finite(weights):
            self._end("a weight or statistic of the model", int(self.model.step))

    def stop(self, optimizer, skips):
        """Raises the error for too many skipped steps."""
        first = int(optimizer.last_overflow_step.numpy()) - skips + 1
        self._end(f"the gradients, {skips} steps in a row", first, optimizer)

    def _end(self, what, step, optimizer=None):
        scale = float(loss_scale.scale(optimizer or self.model.optimizer))
        kept = self._checkpoints.latest
        raise NonFiniteError(
            f"Training became non-finite: {what}, at epoch "
            f"{(step - 1) // self._steps_per_epoch + 1}, step {step}, loss scale now {scale:g}. "
            + (f"The last good checkpoint is {kept}. " if kept else "No checkpoint was saved yet. ")
            + ADVICE
        )


def _all_finite(weights):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(w)) for w in weights])


class Checkpointer(keras.callbacks.Callback):
    """Saves the full state after each epoch, every so many steps, and when asked to stop.

    Between `on_train_begin` and `on_train_end` the first SIGINT or SIGTERM saves and stops at the
    next step; a second one stops at once. One to any of several workers stops all, at the same
    step.

    Args:
        checkpoints: `Checkpoints` to save to.
        guard: `NonFiniteGuard` that looks before each save, so that every checkpoint is good.
        stopwatch: `tfmp.training.stopwatch.Stopwatch` whose seconds and joules are saved too.
        stop: `tfmp.workers.Stop` of all workers.
        every_steps: Steps between two saves; 0: only after epochs.
        resume_hint: What the message tells the user to do to go on.

    Raises:
        StoppedError: In `fit`, after a signal.
    """

    def __init__(self, checkpoints, guard, stopwatch, stop, every_steps, resume_hint):
        super().__init__()
        self._checkpoints = checkpoints
        self._guard = guard
        self._stopwatch = stopwatch
        self._stop = stop
        self._every = every_steps
        self._hint = resume_hint
        self._former = {}
        self._epoch_begin = 0

    def on_train_begin(self, logs=None):
        """Listens to signals; Python allows that in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)

    def on_train_end(self, logs=None):
        """Gives the signals back."""
        self.restore_signals()

    def restore_signals(self):
        """Gives the signals back; also for a `fit` that ended with an error."""
        while self._former:
            signal.signal(*self._former.popitem())

    def on_epoch_begin(self, epoch, logs=None):
        """Reads the step once, so that no later step waits for the device."""
        self._epoch_begin = int(self.model.step)

    def on_train_batch_begin(self, batch, logs=None):
        """Saves when it is time or a signal came; the state is that after the former step."""
        step = self._epoch_begin + batch
        if self._stop.is_due(step, begins=self.model.steps_per_execution):
            self._end(step)
        if self._every and batch and step % self._every == 0:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        self._save()
        step = int(self.model.step)
        if self._stop.is_due(step):
            self._end(step)

    def _save(self):
        self._guard.check()
        self._checkpoints.seconds.assign(self._stopwatch.seconds())
        self._checkpoints.joules.assign(self._stopwatch.joules())
        self._checkpoints.save()

    def _on_signal(self, number, frame):
        said = signal.Signals(number).name
        self.restore_signals()
        self._stop.ask(said)
        print(f"\n{said}: saving after this step. Again: stop at once.", file=sys.stderr)

    def _end(self, step):
        self._save()
        workers.finish(distribution.worker(self.model.distribute_strategy))
        raise StoppedError(f"Stopped by {self._stop.reason} after step {step}, saved. {self._hint}")


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping, which a resumed run starts where it had been.

    Args:
        patience: Epochs without a better value on the validation examples.
        metrics_file: The CSV log of the run.
        monitor: Name of the metric.
        mode: "max" or "min": what its best value is.
        worker: This process, a `tfmp.workers.Worker`.
    """

    def __init__(self, patience, metrics_file, monitor, mode, worker=workers.ALONE):
        super().__init__(monitor=f"val_{monitor}", mode=mode, patience=patience)
        self._metrics_file = pathlib.Path(metrics_file)
        self._worker = worker

    def on_train_begin(self, logs=None):
        """Replays the epochs before."""
        super().on_train_begin(logs)
        for row in epochs_before(self._worker, self._metrics_file):
            self.on_epoch_end(int(row["epoch"]), row)


def epochs_before(worker, metrics_file):
    """Rows of the CSV log, as the chief, who writes it, reads them."""

    def read():
        return json.dumps(read_metrics(metrics_file))

    return json.loads(workers.chief_first(worker, "epochs", read))


def has_stopped_early(patience, metrics_file, monitor, mode, worker=workers.ALONE):
    """Whether `EarlyStopping` has ended the run that wrote a CSV log; never without patience."""
    rows = epochs_before(worker, metrics_file) if patience else []
    scores = [row[f"val_{monitor}"] for row in rows]
    scores = [score for score in scores if not math.isnan(score)]
    best = max if mode == "max" else min
    return bool(scores) and len(scores) - 1 - scores.index(best(scores)) >= patience
