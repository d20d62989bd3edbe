"""Models that half breaks on a batch, and look-alikes that are right.

Each function builds a model under the global policy and gives it with a batch: (model, inputs) or
(model, inputs, labels). Those with labels are compiled.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is wrong with a model.

    Attributes:
        build: Builds it.
        rule: The rule that finds it.
        layer: The layer that it names; None: the model.
        damage: What goes wrong in half and not in float32, a key of `DAMAGE` in the tests.
        mended: Builds it as the finding says; None: `fix` mends it.
        policy: Policy of the model.
    """

    build: Callable
    rule: str
    layer: str | None
    damage: str
    mended: Callable | None = None
    policy: str = "mixed_float16"


def normal(*shape, scale=1.0, shift=0.0):
    return np.float32(np.random.default_rng(0).normal(size=shape) * scale + shift)


class Compute(keras.layers.Layer):
    """A layer of the user's own that computes a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)

    def get_config(self):
        return super().get_config() | {"function": self.function}


@keras.saving.register_keras_serializable(package="cases")
class Growing(keras.layers.Layer):
    """A cell whose state grows with each step."""

    state_size = output_size = 4

    def call(self, inputs, states):
        state = states[0] * 3 + inputs
        return state, [state]


@keras.saving.register_keras_serializable(package="cases")
class Square(keras.layers.Layer):
    """A square that is made small too late."""

    def call(self, inputs):
        return inputs * inputs * 1e-4

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="cases")
class SumOfSquares(keras.regularizers.Regularizer):
    """Small, but for its sum."""

    def __call__(self, x):
        return 1e-3 * ops.sum(ops.square(x))

    def get_config(self):
        return {}


def around(function, features=8, name="planted", head=4, **options):
    """A small functional model with a layer of a function in its middle."""
    inputs = keras.Input((features,))
    x = layers.Dense(16, activation="relu", name="before")(inputs)
    x = Compute(function, name=name, **options)(x)
    x = layers.Dense(8, name="after")(x)
    return keras.Model(inputs, layers.Dense(head, dtype="float32", name="head")(x))


def trained(model, inputs, loss="mse"):
    """The model compiled, its inputs and labels of ones."""
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model, inputs, np.ones((len(inputs), 4), np.float32)
