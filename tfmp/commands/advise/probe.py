"""The child process of `advise`: one JSON spec as its argument, one JSON line out.

`facts` looks at the device and the model; `function` times the model of a user's function.
"""

import dataclasses
import importlib
import itertools
import json
import sys
import time

import keras
import tensorflow as tf

from tfmp import (
    cli,
    compile_cache,
    errors,
    hardware,
    loss_scale,
    policies,
    provenance,
    training,
)
from tfmp.commands.advise import calls, target
from tfmp.commands.benchmark import children, ours, timing
from tfmp.training.session import compiles

# Adam's step is of this size whatever the gradient's: the loss of any model falls by it, and in
# the two hundred steps of a probe no weight goes far.
LEARNING_RATE = 1e-4


def facts(spec):
    """What there is to know without measuring.

    Args:
        spec: Dict of the fields of `Config`.

    Returns:
        A dict that JSON can write; the settings in it have no holes left. Of a user's mistake:
        {"mistake": what it is}.
    """
    try:
        device = hardware.describe()
        spec = target.defaults(spec, device)
        chosen = policies.resolve(spec["policy"], device)
        compared = chosen.name
        if spec["policy"] == "auto" and compared == "float32":
            compared = "mixed_float16"  # what it would cost or gain is the question
        if target.is_function(spec["target"]):
            model = target.load(spec["target"], compared)
            _check_batch(model, spec["batch_sizes"])
        else:
            model = _of_recipe(spec, compared)
        found = calls.of_model(model)
    except errors.UserError as error:
        return {"mistake": str(error)}
    hardware.set_tf32(True)
    return {
        "settings": spec,
        "device": dataclasses.asdict(device),
        "tf32": hardware.tf32_in_force(),
        "policy": {"name": chosen.name, "reason": chosen.reason},
        "compared": compared,
        "jit_compile": {x: _ways(device, x) for x in {"float32", compared}},
        "work": found,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


def _ways(device, policy):
    """Whether to probe with XLA, without, or both.

    On a CPU XLA helps float32 at times and harms it at others: half precision, which needs XLA
    there, has to beat the faster.
    """
    both = device.kind == "cpu" and policy == "float32"
    return [False, True] if both else [compiles("auto", device, policy)]


def _of_recipe(spec, policy):
    """The recipe's model, made by its own `prepare`."""
    _, words = target.recipe_flags(spec, target.case(policy, False, spec["batch_sizes"][0]))
    words.append("--compile_cache=false")
    recipe = importlib.import_module(f"tfmp.recipes.{spec['target']}")
    _, _, classifier, _ = recipe.prepare(cli.parse(recipe.Config, words))
    return classifier.model


def _check_batch(model, batch_sizes):
    for x in model.inputs:
        if x.shape[0] is not None and set(batch_sizes) != {x.shape[0]}:
            raise errors.UserError(
                f"The model's input {x.name!r} is of batch size {x.shape[0]}: expected "
                f"--batch_sizes={x.shape[0]}. Received: {','.join(map(str, batch_sizes))}."
            )


class Fitted(keras.Model):
    """A model around another one, that gives how far each example's outputs are from a pattern.

    The pattern is 1, 0, 1, 0 ... along the last axis, which no sensible layer starts at: the loss
    of probabilities, of unit vectors and of outputs that start as zeros can fall, where of all
    zeros it can't. Integer outputs have no gradient and don't count.

    Args:
        model: A built Keras model.
    """

    def __init__(self, model):
        super().__init__(name="fitted", dtype="float32")  # so as not to cast the inputs
        self.model = model
        self.built = True

    @property
    def step(self):
        """Training steps so far, skipped ones too: a scalar int64 tensor."""
        return loss_scale.steps(self.optimizer)

    def call(self, inputs, training=False):
        """Mean squared distances, [batch] float32."""
        outputs = keras.tree.flatten(self.model(inputs, training=training))
        outputs = [x for x in outputs if x.dtype.is_floating]
        if not outputs:
            raise errors.UserError("Expected a model with an output of floats, to train on.")
        return tf.add_n([_distance(tf.cast(x, tf.float32)) for x in outputs])


def _distance(x):
    x = tf.reshape(x, [tf.shape(x)[0], -1]) if x.shape.rank == 1 else x
    pattern = tf.cast(1 - tf.range(tf.shape(x)[-1]) % 2, tf.float32)
    return tf.reduce_mean(tf.square(x - pattern), axis=list(range(1, x.shape.rank)))


def mean_distance(zeros, distances):
    """The loss: the mean of what `Fitted` gives; Keras wants a target, which is zeros [batch]."""
    return tf.reduce_mean(distances - zeros)


def batch(model, size):
    """Random inputs by the model's specs: floats of 0-1, integers 0 or 1.

    Returns:
        (inputs in the model's own structure, zeros [size]).
    """
    generator = tf.random.Generator.from_seed(0)

    def draw(x):
        dtype, shape = tf.as_dtype(x.dtype), (size, *x.shape[1:])
        if dtype.is_floating:
            return tf.cast(generator.uniform(shape), dtype)
        # TensorFlow keeps int32 on the host, where a GPU would wait for it in every step.
        numbers = generator.uniform(shape, maxval=2, dtype=tf.int32)
        return tf.cast(numbers, tf.int64 if dtype == tf.int32 else dtype)

    return keras.tree.map_structure(draw, calls.inputs_of(model)), tf.zeros(size)


class FunctionWork(ours.RecipeWork):
    """The training step of a `Fitted` model on one batch.

    Args:
        fitted: Compiled `Fitted`.
        data: (inputs, targets).
        function: Function of an iterator that trains one step and returns logs.
    """

    def __init__(self, fitted, data, function):
        self.classifier = fitted
        self._function = function
        self._iterator = self._repeated = itertools.repeat(data)


def compiled(model, jit_compile):
    """A `Fitted` of the model, compiled and accelerated as a user of tfmp would."""
    fitted = Fitted(model)
    adam = keras.optimizers.Adam(LEARNING_RATE)
    loss_scale.compile(fitted, adam, loss=mean_distance, jit_compile=False)
    training.accelerate(fitted, jit_compile=jit_compile)
    fitted.optimizer.build(fitted.trainable_variables)
    vector = keras.KerasTensor((None,))
    fitted._compile_loss.build(vector, vector)
    return fitted


def function(spec):
    """Times the model of a function.

    Args:
        spec: Dict: `target`, `policy`, `jit_compile`, `batch_size`, `steps`, `windows`,
            `spawned_at` (`time.monotonic()` before this process was started).

    Returns:
        The dict of `timing.measure`, with what was in force.
    """
    compile_cache.start("auto", deterministic=False, tf32=True)
    keras.utils.set_random_seed(0)
    hardware.set_tf32(True)
    device = hardware.describe()
    model = target.load(spec["target"], spec["policy"])
    hardware.reset_peak_memory()
    try:
        fitted = compiled(model, spec["jit_compile"])
        data = batch(model, spec["batch_size"])
        work = FunctionWork(fitted, data, fitted.make_train_function())
        prepared = time.monotonic() - spec["spawned_at"]
        measured = timing.measure(work, steps=spec["steps"], windows=spec["windows"])
    except tf.errors.ResourceExhaustedError:
        raise errors.OutOfMemoryError(
            f"{device.name} has no memory for batch size {spec['batch_size']}."
        ) from None
    except tf.errors.OpError as error:
        if explanation := compile_cache.explain(error.message):
            raise errors.TfmpError(explanation) from error
        raise
    return ours.in_force(measured, prepared, fitted, device, spec["jit_compile"])


if __name__ == "__main__":
    children.answer({"facts": facts, "function": function}[sys.argv[1]], json.loads(sys.argv[2]))
