"""A callback that watches the numbers of a training: headroom, underflow, and who overflowed."""

import concurrent.futures
import contextlib
import dataclasses
import math
import pathlib
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmp import distribution, loss_scale
from tfmp.errors import UserError
from tfmp.training import layer_maxima, trace_files
from tfmp.training.accelerate import engine_of, local
from tfmp.training.rerun import packed, rerun, state_variables, unpacked

# A layer is warned about below so many bits of headroom, or where a line through its last WINDOW
# looks reaches 0 within as many more.
LEAST_HEADROOM = 2.0
WINDOW = 8

# Steps that may be with the device while the next one is prepared. The host is ahead of a GPU by
# four or five steps where nothing holds it, and numbers are fetched behind all that the device has
# been given by then: with two steps in flight a GPU waited for 5 % of its time, with six for none.
IN_FLIGHT = 6

# Reruns in one `fit`: each takes as long as a few steps that XLA doesn't compile.
MOST_RERUNS = 20


@dataclasses.dataclass(eq=False)
class _Step:
    """A step that was sent to the device.

    Attributes:
        number: Counted from 1.
        state: Values before it, of `Tracer._variables`, `packed`.
        before: Loss scales and skipped steps before it, [2, optimizers], as a future.
        after: The same behind it.
        data: Its batch.
        measured: What a traced step returned beside its logs, as a future.
    """

    number: int
    state: list
    before: concurrent.futures.Future
    after: concurrent.futures.Future | None = None
    data: Any = None
    measured: concurrent.futures.Future | None = None


class Tracer(keras.callbacks.Callback):
    """Watches how near a training is to float16's limits, and names the layer that passes them.

    For a model that `tfmp.accelerate` was called on. Every so many steps it runs, in place of the
    step, one that computes the same and returns, too, the largest magnitude of each layer's output
    and figures of each weight's gradient. When the loss scale skips a step, the step is run once
    more without XLA, layer by layer, with its own batch, weights, seeds and loss scale; a line says
    which layer was the first to become infinite or NaN, forward or backward. A line warns, once a
    layer, when the headroom of a float16 output shrinks towards zero.

    After each epoch it writes `precision_trace.json`, and at the end of `fit`, too,
    `precision_trace.png`: loss scale, skipped steps, gradient norm, headroom by layer.

    - headroom: bits to 65504, the largest number of float16, also of layers in other dtypes.
    - underflow: share of a gradient's entries, other than zero, that would be zero in float16: of
      the scaled loss, and of the loss as it is. `zeros` has those that are zero already, as what
      float16 has flushed in the backward pass.

    It keeps the weights and the batches of up to eight steps on the device, and waits for no step
    but the seventh before the next. With `steps_per_execution` above 1 it can't run a step once
    more, and of the steps in one call it shows the last.

    Args:
        folder: Folder for the two files.
        every: Calls of the step from one traced step to the next.
        tensorboard: Folder for TensorBoard's logs, or None.

    Raises:
        UserError: In `fit`: `accelerate` was not called.
    """

    def __init__(self, folder, every=100, tensorboard=None):
        super().__init__()
        if every < 1:
            raise UserError(f"Expected every of 1 or more. Received: {every}.")
        self.folder = pathlib.Path(folder)
        self.every = every
        self._tensorboard = tensorboard
        self._said = set()
        self._engine: Any = None

    # --- what Keras calls

    def on_train_begin(self, logs=None):
        """Hands itself to the engine."""
        engine = engine_of(self.model)
        if engine is None:
            raise UserError(
                "Expected a model that tfmp.accelerate was called on: Keras' own step shows a "
                "callback no layer. Received: a model with Keras' own step."
            )
        self.finish()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._engine, engine.tracer = engine, self
        optimizers = loss_scale.optimizers_of(self.model)
        self._scaled = [x for x in loss_scale.scaled_optimizers_of(self.model) if x.built]
        self._step = int(loss_scale.steps(optimizers[0])) if optimizers else 0
        self._calls = 0
        self._reruns = 0
        self._variables = state_variables(self.model)
        self._owners = layer_maxima.owners(self.model)
        self._snapshot = tf.function(self._read, autograph=False).get_concrete_function()
        self._steps = []
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        names = [x.name for x in self._scaled]
        self.trace = trace_files.begin(self.folder, self._step, names, self.every)
        self._writer = self._tensorboard and tf.summary.create_file_writer(str(self._tensorboard))
        if self.model.steps_per_execution > 1:
            self._say(
                "steps_per_execution is above 1: a step that overflows is counted, and not run "
                "once more"
            )
        if not self._scaled:
            self._say("no optimizer is a tfmp.LossScaleOptimizer: no step is known to overflow")

    def on_epoch_end(self, epoch, logs=None):
        """Writes the JSON file."""
        self._settle_all()
        self._write()

    def on_train_end(self, logs=None):
        """Writes the files, and leaves the engine."""
        self.finish()

    def finish(self):
        """Writes the files and leaves the engine; also for a `fit` that ended with an error."""
        if self._engine is None:
            return
        try:
            with contextlib.suppress(tf.errors.OpError):  # what ended `fit` says more
                self._settle_all()
            self._write()
            trace_files.plot(self.trace, self.folder / trace_files.PNG)
        finally:
            self._engine.tracer = self._engine = None
            self._steps = []
            self._pool.shutdown()

    # --- what the engine calls

    def before_step(self):
        """Looks at former steps and keeps the state; returns whether the step is to be traced."""
        # A call that found the data at its end ran no step.
        self._steps = [step for step in self._steps if step.data is not None]
        state, counters = self._read_state()
        while len(self._steps) > IN_FLIGHT:
            self._settle(self._steps[0])
        number = self._step + self.model.steps_per_execution
        self._steps.append(_Step(number, state, counters))
        return self._calls % self.every == 0

    def after_step(self, logs, batch):
        """Keeps a call's last batch and what the step returned beside its logs; returns these."""
        step = self._steps[-1]
        self._calls += 1
        self._step = step.number
        step.data = batch
        keys = [k for k in (layer_maxima.ACTIVATIONS, layer_maxima.GRADIENTS) if k in logs]
        if measured := [logs.pop(key) for key in keys]:
            step.measured = self._pool.submit(lambda: [x.numpy() for x in measured])
        return logs

    def _read(self):
        """State of the first replica (that of the others is the same), and the loss scales."""
        strategy = self.model.distribute_strategy
        copies = [distribution.copies(strategy, v)[0] for v in self._variables]
        scaled = [
            [tf.cast(distribution.copies(strategy, v)[0], tf.float64) for v in pair]
            for pair in ((x.dynamic_scale, x.skipped_steps) for x in self._scaled)
        ]
        counters = tf.transpose(tf.stack(scaled)) if scaled else tf.zeros([2, 0], tf.float64)
        whole = self.model.steps_per_execution == 1 and self._scaled
        return packed([v.read_value() for v in copies]) if whole else [], counters

    def _read_state(self):
        """The state behind the newest step; its counters are fetched elsewhere, without waiting."""
        state, counters = self._snapshot()
        future = self._pool.submit(counters.numpy)
        if self._steps and self._steps[-1].after is None:
            self._steps[-1].after = future
        return state, future

    # --- looking at a step that has ended

    def _settle_all(self):
        if self._steps:
            self._read_state()
        while self._steps:
            self._settle(self._steps[0])

    def _settle(self, step):
        self._steps.remove(step)
        if step.data is None:
            return
        before, after = step.before.result(), step.after.result()
        skipped = int(np.sum(after[1] - before[1]))
        self.trace.add_scales(step.number, before[0], after[0])
        if skipped:
            self.trace.add_skips(step.number, skipped)
            self._explain(step, before[0][np.argmax(after[1] - before[1])])
        if step.measured:
            self._look(step, self._engine.maxima, after[0], overflowed=skipped > 0)

    def _explain(self, step, scale):
        if not step.state or self._reruns >= MOST_RERUNS:
            return
        self._reruns += 1
        found = {"step": step.number, "loss_scale": float(scale)}
        values = unpacked(self._variables, step.state)
        state = list(zip(self._variables, values, strict=True))
        try:
            fault = self._fault(step.data, state)
        # Whatever fails in a second look must not end the training.
        except Exception as error:
            self._say(f"step {step.number} overflowed; running it once more failed: {error}")
            self.trace.add_overflow(found | {"error": str(error)})
            return
        if fault is None:
            self._say(
                f"step {step.number} overflowed, which it doesn't where it is run layer by layer"
            )
            self.trace.add_overflow(found)
            return
        where = f"layer {fault.layer}" if fault.layer else "no layer"
        largest = "" if fault.largest is None else f", of values up to {fault.largest:.4g}"
        self._say(
            f"step {step.number} overflowed in the {fault.direction} pass, first in {where}: "
            f"{fault.what}{largest}; loss scale {scale:g}",
            key=(fault.layer, fault.direction, fault.what),
        )
        self.trace.add_overflow(found | dataclasses.asdict(fault))

    def _fault(self, data, state):
        steps = self._engine.steps
        for index in range(steps.replicas):
            part = local(self.model.distribute_strategy, data, index)
            if fault := rerun(steps, index, part, state):
                return fault
        return None

    def _look(self, step, maxima, scales, overflowed):
        activations, gradients = step.measured.result()
        seen = {
            path: float(x)
            for (_, path), x in zip(maxima.layers, activations, strict=True)
            if x != layer_maxima.UNSEEN
        }
        weights = [
            (self._owners.get(id(v), v.path), math.prod(v.shape))
            for v in self.model.trainable_variables
        ]
        self.trace.add_look(step.number, seen, maxima.dtypes, weights, gradients)
        if self._writer:
            trace_files.write_scalars(self._writer, self.trace, scales)
        for path, dtype in maxima.dtypes.items():
            if dtype == "float16" and not overflowed:
                self._warn(step.number, path)

    def _warn(self, step, path):
        headroom = self.trace.headroom[path][-WINDOW:]
        # (What is infinite in a good step is so on purpose, as masks are.)
        if path in self.trace.warned or None in headroom or not headroom[-1]:
            return
        slope = np.polyfit(range(WINDOW), headroom, 1)[0] if len(headroom) == WINDOW else 0.0
        falls = slope < 0 and headroom[-1] + WINDOW * slope <= 0
        if headroom[-1] < LEAST_HEADROOM or falls:
            self.trace.add_warning(step, path, headroom[-1])
            self._say(
                f"step {step}: layer {path} is {headroom[-1]:.1f} bits below float16's largest "
                "number" + (", and comes nearer" if slope < 0 else "")
            )

    def _say(self, line, key=None):
        if (key or line) not in self._said:
            self._said.add(key or line)
            print(f"Tracer: {line}.", file=sys.stderr, flush=True)

    def _write(self):
        if maxima := self._engine.maxima:
            self.trace.unseen = [path for _, path in maxima.layers if path not in maxima.dtypes]
        self.trace.write(self.folder)
