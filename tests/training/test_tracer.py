"""Which layer overflowed, in which step; how near the others are; and the training is the same."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import errors, loss_scale, policies

layers = keras.layers
SIZE, STEPS, BAD = 8, 6, 4  # the fourth step is bad
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(SIZE * STEPS, 4)).astype("float32")
LABELS = RNG.integers(2, size=(SIZE * STEPS, 1)).astype("float32")
EXAMPLE = SIZE * (BAD - 1) + 3


class Square(layers.Layer):
    """Overflows forward, in float16, from 256 on."""

    def call(self, inputs):
        return keras.ops.square(inputs)


class Root(layers.Layer):
    """Overflows backward at zero."""

    def call(self, inputs):
        return keras.ops.sqrt(keras.ops.abs(inputs))


class Block(layers.Layer):
    """Layers in a layer, and an operation of its own."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, use_bias=False, name="dense")
        self.inner = inner

    def call(self, inputs):
        return self.inner(self.dense(inputs)) * 0.5


class Subclassed(keras.Model):
    """A model of one's own."""

    def __init__(self, inner):
        super().__init__()
        self.encoder = Block(inner, name="encoder")
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, inputs):
        return self.head(self.encoder(inputs))


class OwnStep(Subclassed):
    """With a step of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def functional(inner):
    inputs = keras.Input((4,))
    x = layers.Dense(4, use_bias=False, name="first")(inputs)
    x = inner(layers.Dropout(0.2, seed=1, name="drop")(x)) + 1.0
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(x))


def recurrent(inner):
    inputs = keras.Input((4,))
    x = layers.Reshape((2, 2))(inputs)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both")(x)
    x = layers.LSTM(4, activation="relu", name="last")(x * 1.0)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(inner(x)))


def make(build, inner, *, compiling=None, policy="mixed_float16", **accelerate):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        model = build(inner)
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=64.0)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **compiling or {})
    return tfmp.accelerate(model, **accelerate)


def trained(model, inputs, *callbacks, epochs=1):
    fit = {"batch_size": SIZE, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(inputs, LABELS, callbacks=list(callbacks), **fit).history


def poisoned(value):
    inputs = INPUTS.copy()
    inputs[EXAMPLE] = value
    return inputs


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    variables += loss_scale.inner(model.optimizer).variables
    return [v.numpy() for v in variables]


def written(folder):
    return json.loads((folder / "precision_trace.json").read_text())


def in_float16(inner):
    with policies.scope("mixed_float16"):
        return inner()


FORWARD = {"direction": "forward", "what": "its output", "replica": 0}


@pytest.mark.parametrize(
    ("build", "inner", "value", "layer", "direction", "accelerate"),
    [
        (functional, Square, 3e3, "planted", "forward", {}),
        (functional, Root, 0.0, "planted", "backward", {"microbatches": 2}),
        (Subclassed, Square, 3e3, "encoder/planted", "forward", {"jit_compile": False}),
        (OwnStep, Root, 0.0, "encoder/planted", "backward", {}),
        (recurrent, layers.Identity, 6e4, "last", "forward", {}),
    ],
)
def test_the_layer_and_the_step_are_named(
    build, inner, value, layer, direction, accelerate, tmp_path, capsys
):
    with policies.scope("mixed_float16"):
        planted = inner(name="planted")
    plain = make(build, planted, **accelerate)
    trained(plain, poisoned(value))
    with policies.scope("mixed_float16"):
        planted = inner(name="planted")
    model = make(build, planted, **accelerate)
    trained(model, poisoned(value), tfmp.Tracer(tmp_path, every=2))
    for one, other in zip(state(plain), state(model), strict=True):
        np.testing.assert_array_equal(one, other)
    trace = written(tmp_path)
    (found,) = trace["overflows"]
    assert (found["step"], found["layer"], found["direction"]) == (BAD, layer, direction)
    assert trace["skipped"] == [[BAD, 1]]
    assert list(trace["loss_scale"].values()) == [[[0, 64.0], [BAD, 32.0]]]
    said = capsys.readouterr().err
    assert f"step {BAD} overflowed in the {direction} pass, first in layer {layer}" in said
