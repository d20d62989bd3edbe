"""The child process of a cell: one JSON spec as its argument, one JSON line out."""

import contextlib
import json
import math
import pathlib
import pickle
import sys
import textwrap
import time

import keras
import numpy as np
import tensorflow as tf

from tfmp import errors, hardware, loss_scale, policies, provenance, training
from tfmp.commands.advise import probe, target, trained
from tfmp.commands.benchmark import children, ours
from tfmp.commands.matrix import reload
from tfmp.doctor.draws import same_draws
from tfmp.doctor.fallback import loss_of

# Steps that may be skipped before the first good ones: a scale of 2**15 has come down to 1 by then.
SETTLING = 15


def train(spec):
    """Trains a cell's model a few steps and saves it.

    Args:
        spec: Dict: `target`, `policy`, `jit_compile`, `replicas`, `steps`, `batch_size`, `flags`
            (of a recipe), `folder` (for the saved model and what it predicts).

    Returns:
        A dict that JSON can write; see `judge.reasons`. Of a mistake that is no cell's own:
        {"mistake": what it is}.
    """
    ours.make_replicas(spec["replicas"])
    is_function = target.is_function(spec["target"])
    try:
        learner, model, batch, inputs = (_function if is_function else _recipe)(spec)
    except trained.MistakeError as error:
        return {"mistake": str(error)}
    except Exception as error:
        return {"error": _said(error)}
    scaled = _loss_scale(learner)  # before `fit`, which mends it
    steps = Steps(model, spec["steps"])
    # The first step may build layers of a user's model.
    scope = policies.scope(spec["policy"]) if is_function else contextlib.nullcontext()
    try:
        if is_function:
            training.accelerate(learner, jit_compile=spec["jit_compile"])
        with scope, same_draws():
            learner.fit(
                tf.data.Dataset.from_tensors(batch).repeat(),
                epochs=spec["steps"] + SETTLING,
                steps_per_epoch=1,
                shuffle=False,
                verbose=0,
                callbacks=[steps],
            )
        found = _found(learner, model, steps.before, inputs, pathlib.Path(spec["folder"]))
    except Exception as error:
        return {"error": _said(error)}
    return found | {
        "losses": steps.losses,
        "steps": len(steps.losses),
        "skipped_steps": steps.skipped,
        "loss_scale": scaled,
        "step_ms": 1e3 * sum(steps.seconds[1:]) / len(steps.seconds[1:]),
        "first_step_s": steps.seconds[0],
        "device": hardware.describe().name,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


# Lines of TensorFlow's messages that don't say what is wrong.
NOISE = ("Graph execution error", "Detected at node", "File ", "Stack trace", "[[{{", "Original")


def _said(error):
    """An error in a line."""
    said = target.said(error)
    if isinstance(error, errors.TfmpError):
        said = str(error)
    elif isinstance(error, tf.errors.OpError):
        lines = [line.strip() for line in error.message.splitlines()]
        lines = [line for line in lines if line and not line.startswith(NOISE)]
        said = f"{type(error).__name__}: {lines[-1] if lines else error.message}"
    return textwrap.shorten(said, 300, placeholder=" ...")


class Steps(keras.callbacks.Callback):
    """The loss of each step, of epochs of one step; None where it was skipped or is not finite.

    Args:
        weights_of: Keras model, whose weights it notes before the first step.
        count: Steps that are not skipped after which it ends training.

    Attributes:
        losses: List of losses.
        seconds: List of what each step took.
        skipped: Number of steps that an optimizer skipped.
        before: Dict of the weights' values by the variables' ids.
    """

    def __init__(self, weights_of, count):
        super().__init__()
        self.losses, self.seconds, self.skipped, self.before = [], [], 0, {}
        self._weights_of, self._count, self._skips = weights_of, count, 0

    def on_train_begin(self, logs=None):
        """Notes the weights; `fit` has built the model by now."""
        variables = self._weights_of.trainable_variables
        self.before = dict(zip(map(id, variables), _numpy(variables), strict=True))

    def on_epoch_begin(self, epoch, logs=None):
        """Begins to time the step."""
        self._began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        """Keeps what the step logs: `fit` makes a metric of it that it may not have updated."""
        self._logs = logs

    def on_epoch_end(self, epoch, logs=None):
        """Notes the step."""
        self.seconds.append(time.monotonic() - self._began)
        loss = loss_of(self._logs) or 0.0
        skips = sum(
            int(loss_scale.skipped_steps(x)) for x in loss_scale.scaled_optimizers_of(self.model)
        )
        skipped = skips > self._skips
        self.losses.append(loss if math.isfinite(loss) and not skipped else None)
        self.skipped, self._skips = self.skipped + skipped, skips
        if len(self.losses) - self.skipped == self._count:
            self.model.stop_training = True


def _recipe(spec):
    """(learner, its model, a batch of the training data, random inputs of the model)."""
    learner, batch = trained.recipe(spec["target"], spec["flags"])
    inputs, _ = probe.batch(learner.model, spec["batch_size"])
    return learner, learner.model, batch, inputs


def _function(spec):
    """The same of a user's function; the inputs are those of the batch."""
    settings = {name: spec[name] for name in ("policy", "replicas", "batch_size")}
    model, batch = trained.function(spec["target"], **settings)
    return model, model, batch, batch[0]


def _loss_scale(learner):
    """The least of the optimizers' loss scales: "dynamic", "static" or "none"."""
    kinds = {_kind(x) for x in loss_scale.optimizers_of(learner)}
    return next(kind for kind in ("none", "static", "dynamic") if kind in kinds)


def _kind(optimizer):
    if loss_scale.is_dynamic(optimizer):
        return "dynamic"
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return "static" if scaled else "none"


def _numpy(variables):
    """The variables' values; of several replicas', the first's."""
    return [keras.ops.convert_to_numpy(v) for v in variables]


def _save(model, folder):
    """Saves the model; why that can't be done, or None."""
    try:
        model.save(folder / "model.keras")
    except Exception as error:
        return _said(error)
    return None


def _found(learner, model, before, inputs, folder):
    """What training left; the model is saved with inputs and outputs."""
    after = _numpy(model.trainable_variables)
    unsaved = _save(model, folder)
    outputs = reload.outputs_of(model, inputs)
    arrays = [keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in outputs]
    numpy_inputs = keras.tree.map_structure(keras.ops.convert_to_numpy, inputs)
    (folder / "outputs.pickle").write_bytes(pickle.dumps((numpy_inputs, arrays)))
    scaled = loss_scale.scaled_optimizers_of(learner)
    unchanged = [
        (index, variable.path)
        for index, variable in enumerate(model.trainable_variables)
        if id(variable) in before and (before[id(variable)] == after[index]).all()
    ]
    return ({} if unsaved is None else {"reload": {"unsaved": unsaved}}) | {
        "computes": policies.policy_of(learner),
        "unchanged": unchanged,
        "changed": len(unchanged) < len(after),
        "weights_finite": all(np.isfinite(x).all() for x in after),
        "outputs_finite": all(np.isfinite(x).all() for x in arrays),
        "output_dtypes": sorted({keras.backend.standardize_dtype(x.dtype) for x in outputs}),
        "uses_float16": policies.uses_float16(learner),
        "scale": min((float(loss_scale.scale(x)) for x in scaled), default=1.0),
        "last_overflow_step": max(
            (int(keras.ops.convert_to_numpy(x.last_overflow_step)) for x in scaled), default=0
        ),
    }


if __name__ == "__main__":
    children.answer(train, json.loads(sys.argv[1]))
