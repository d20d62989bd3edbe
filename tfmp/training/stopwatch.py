"""Seconds and joules of training."""

import math
import time

import keras


class Stopwatch(keras.callbacks.Callback):
    """Times training apart from compiling and validation, in seconds, and counts its energy.

    Args:
        before: Seconds that the run took in earlier processes.
        joules_before: Energy of these; NaN: not known.
        power: `tfmp.power.Sampler` that runs; None: the energy is not known.
        compiled_calls: The first calls of the step, each of which compiles.

    Attributes:
        before: Seconds that the run took in earlier processes.
        joules_before: Energy of these; NaN: not known.
        compile: Seconds of the first calls of the step: tracing, compiling, running.
        per_epoch: Seconds of each epoch's training steps, without those calls.
        steps: Steps in all of `per_epoch`.
    """

    def __init__(self, before=0.0, joules_before=0.0, power=None, compiled_calls=1):
        super().__init__()
        self.before = before
        self.joules_before = joules_before
        self._power = power
        self._compiled_calls = compiled_calls
        self._created = time.perf_counter()
        joules = self._joules()
        self._created_joules = 0.0 if math.isnan(joules) else joules  # no sample yet: it just began
        self.compile = 0.0
        self.per_epoch = []
        self.steps = 0
        self._measured = 0.0, 0.0  # seconds of training steps with known energy, and that
        self._calls = 0
        self._running = False
        self._begin = 0.0
        self._begin_joules = 0.0
        self._first_step = 0

    def seconds(self):
        """Seconds of the run, earlier processes included."""
        return self.before + time.perf_counter() - self._created

    def joules(self):
        """Energy of the run, earlier processes included; NaN: not known."""
        return self.joules_before + self._joules() - self._created_joules

    def watts(self):
        """Mean power during training steps, compiling and validation apart; NaN: not known."""
        seconds, joules = self._measured
        return joules / seconds if seconds else math.nan

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start(int(self.model.step))

    def on_train_batch_begin(self, batch, logs=None):
        """Sets the first calls apart."""
        self._calls += 1
        if self._calls == self._compiled_calls + 1 and not self.compile:
            step = int(self.model.step)  # waits for their end
            self.compile = time.perf_counter() - self._begin
            self._start(step)

    def on_test_begin(self, logs=None):
        """Stops the clock before validation."""
        self._stop()

    def on_epoch_end(self, epoch, logs=None):
        """Stops the clock where there was no validation."""
        self._stop()

    def _joules(self):
        return self._power.joules() if self._power else math.nan

    def _start(self, step):
        self._first_step = step
        self._begin = time.perf_counter()
        self._begin_joules = self._joules()
        self._running = True

    def _stop(self):
        if not self._running:
            return
        self._running = False
        steps = int(self.model.step) - self._first_step
        seconds = time.perf_counter() - self._begin
        if self._calls <= self._compiled_calls:
            self.compile += seconds
            self.per_epoch.append(0.0)
            return
        self.per_epoch.append(seconds)
        self.steps += steps
        joules = self._joules() - self._begin_joules
        if not math.isnan(joules):
            self._measured = self._measured[0] + seconds, self._measured[1] + joules
