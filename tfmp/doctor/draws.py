"""Keras' random numbers, the same in every precision."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import random as keras_random  # what layers draw from

from tfmp.policies.choice import HALF

# Bits of a uniform random number, as TensorFlow draws them in half.
BITS = {"float16": 10, "bfloat16": 7}


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Keras draws half random numbers in float32 and rounds them, within a `with` block.

    TensorFlow makes others of the same seed in each dtype, so that a dropout layer drops other
    values in half than in float32. The patch is the process's: nothing else may run beside.
    """
    before = {name: getattr(keras_random, name) for name in DRAWS}
    for name, same in DRAWS.items():
        setattr(keras_random, name, same(before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(keras_random, name, function)


def _normal(original):
    def normal(*args, dtype=None, **kwargs):
        drawn = original(*args, dtype="float32", **kwargs)
        return tf.cast(drawn, dtype or keras.config.floatx())

    return normal


def _uniform(original):
    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        if dtype not in HALF:
            return original(shape, minval, maxval, dtype=dtype, seed=seed)
        # Rounded down, else it could be the maximum.
        steps = 2.0 ** BITS[dtype]
        unit = tf.floor(original(shape, dtype="float32", seed=seed) * steps) / steps
        low, high = tf.cast(minval, dtype), tf.cast(maxval, dtype)
        return tf.cast(unit, dtype) * (high - low) + low

    return uniform


def _dropout(original):
    def dropout(inputs, rate, noise_shape=None, seed=None):
        if inputs.dtype.name not in HALF:
            return original(inputs, rate, noise_shape, seed)
        ones = tf.ones(tf.shape(inputs), "float32")
        return inputs * tf.cast(original(ones, rate, noise_shape, seed), inputs.dtype)

    return dropout


DRAWS = {
    "dropout": _dropout,
    "normal": _normal,
    "truncated_normal": _normal,
    "uniform": _uniform,
}
