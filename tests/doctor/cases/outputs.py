"""Outputs in half. keras.applications end so under a half policy (README, Limits of Keras)."""

import keras
import numpy as np
from keras import layers

from cases import Bad

HALF = "mixed_float16"


def ones(shape, value=1.0):
    return np.full((1, *shape), value, "float32")


def head(activation, dtype, *behind, units=2):
    """A model whose logits are the inputs times 1, 2, ..."""
    inputs = keras.Input((1,))
    dense = layers.Dense(
        units, activation=activation, use_bias=False, dtype=dtype, name="predictions"
    )
    x = dense(inputs)
    for layer in behind:
        x = layer(x)
    model = keras.Model(inputs, x)
    dense.kernel.assign(np.arange(1.0, units + 1)[None] * 10)
    return model


def loses_small_probabilities(model):
    """exp(-20) is 2e-9."""
    return model.predict(ones((1,), 2.0), verbose=0).min() == 0


def rounds(model):
    """2049 is no float16."""
    return model.predict(ones((1,), 204.9), verbose=0).ravel()[0] == 2048


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, dtype=HALF, name="hidden")
        self.last = layers.Dense(
            1, activation="sigmoid", kernel_initializer="ones", dtype=HALF, name="last"
        )

    def call(self, x):
        return self.last(self.hidden(x))


def subclassed():
    model = Subclassed()
    model(ones((1,)))
    model.hidden.kernel.assign(ones((4,), -5.0))
    return model


def nested():
    inside = head(None, HALF, units=1)
    inside.name = "regressor"
    inputs = keras.Input((1,))
    model = keras.Model(inputs, inside(layers.Activation("linear", dtype=HALF)(inputs)))
    model.compile("sgd", "mse")
    return model


BAD = {
    "softmax": Bad(
        lambda: head("softmax", HALF), "half_output", "predictions", loses_small_probabilities
    ),
    "softmax_in_a_layer": Bad(
        lambda: head(None, HALF, layers.Softmax(dtype=HALF, name="probabilities")),
        "half_output",
        "probabilities",
        loses_small_probabilities,
    ),
    "cast_too_late": Bad(
        lambda: head("softmax", HALF, layers.Activation("linear", dtype="float32")),
        "half_output",
        "predictions",
        loses_small_probabilities,
    ),
    "sigmoid_of_a_subclass": Bad(
        subclassed, "half_output", "last", lambda m: m.predict(ones((1,)), verbose=0).min() == 0
    ),
    "regression_in_a_nested_model": Bad(nested, "half_output", "regressor/predictions", rounds),
}

CLEAN = {
    "softmax_in_float32_of_half_logits": lambda: head(
        None, HALF, layers.Activation("softmax", dtype="float32")
    ),
    "regression_in_float32": lambda: head(None, "float32", units=1),
    "classes": lambda: keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, dtype=HALF),
            layers.Lambda(lambda x: keras.ops.argmax(x, -1), dtype=HALF),
        ]
    ),
}
