"""XLA, sizes, and layers made outside of a scope."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfmp
from cases import Bad
from cases.constants import HALF, float32_head


def trained(model):
    """Whether a step fails, or XLA is off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says that it turns XLA off
        model.compile("sgd", "mse", jit_compile=True)
    if not model.jit_compile:
        return True
    x = np.ones((1, *model.input_shape[1:]), "float32")
    y = np.zeros((1, *model.output_shape[1:]), "float32")
    try:
        model.fit(x, y, verbose=0)
    except (tf.errors.OpError, ValueError):
        return True
    return False


def compiled(model, jit_compile=True):
    return tfmp.compile(model, "sgd", loss="mse", jit_compile=jit_compile)


def resized(interpolation="bilinear", dtype=HALF):
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, activation="relu", dtype=HALF)(inputs)
    x = layers.UpSampling2D(interpolation=interpolation, dtype=dtype, name="up")(x)
    return keras.Model(inputs, float32_head(x))


class Median(layers.Layer):
    """By numpy, without saying that XLA can't."""

    def call(self, x):
        y = tf.numpy_function(np.median, [x], x.dtype.as_numpy_dtype)
        return x - tf.reshape(y, (1, 1))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Block(layers.Layer):
    def __init__(self, told, **kwargs):
        super().__init__(**kwargs)
        self.told = told

    def build(self, shape):
        self.dense = layers.Dense(8, dtype=self.told, name="dense")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def dense(units):
    inputs = keras.Input((64,))
    x = layers.Dense(units, dtype=HALF, name="wide")(inputs)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def rotated():
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomRotation(0.1, dtype="float32", name="rotated")(inputs)
    return keras.Model(inputs, float32_head(layers.Conv2D(8, 1, dtype=HALF)(x)))


def of(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, float32_head(layer(inputs)))


def not_mixed(model):
    return model.get_layer("block").dense.compute_dtype != "float16"


def told(policy):
    def build():
        with tfmp.policies.scope(HALF):
            block = Block(policy, name="block")
        return of(block, (8,))

    return build


BAD = {
    "bilinear_upsampling": Bad(
        lambda: compiled(resized()), "half_resize", "up", trained, severity="error"
    ),
    "numpy": Bad(
        lambda: compiled(of(Median(dtype=HALF, name="median"), (4,))),
        "xla_refuses",
        "median",
        trained,
        lambda: compiled(of(layers.LayerNormalization(dtype=HALF, name="median"), (4,))),
        "error",
    ),
    "rotation": Bad(
        rotated,
        "xla_off",
        "rotated",
        trained,
        lambda: of(layers.Conv2D(8, 1, dtype=HALF), (8, 8, 3)),
    ),
    "made_in_build": Bad(
        told(None), "outside_scope", "block/dense", not_mixed, told(HALF), "warning"
    ),
    "units_of_1001": Bad(
        lambda: dense(1001),
        "misaligned_sizes",
        "wide",
        lambda model: model.get_layer("wide").units % 8,
        lambda: dense(1008),
        "info",
    ),
}

CLEAN = {
    "nearest_upsampling": lambda: compiled(resized("nearest")),
    "bilinear_upsampling_in_float32": lambda: compiled(resized(dtype="float32")),
    "bilinear_upsampling_without_xla": lambda: compiled(resized(), False),
    "numpy_without_xla": lambda: compiled(of(Median(dtype=HALF), (4,)), False),
    "sublayer_meant_to_be_float32": told("float32"),
    "sublayer_of_the_policy": told(HALF),
    "lstm": lambda: compiled(of(layers.LSTM(8, dtype=HALF), (4, 8)), False),
}
