"""Compares models with and without fused layers; for the tests of these."""

import keras
import numpy as np
import tensorflow as tf

from tfmp.training.fused import fused_layers

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def images(shape=(6, 9, 8, 5), seed=0, dtype="float32"):
    """Values that are exact in half precision, so that all precisions see the same ones."""
    rng = np.random.default_rng(seed)
    return tf.constant(rng.integers(-128, 128, size=shape) / 64, dtype)


def network(*stack, shape=(9, 8, 5)):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), *stack])


def traced(model, x, *, fused, upstream, jit_compile=True):
    """Output, gradients of `x` and of the weights, and the function that computes them."""

    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
        return y, tape.gradient(y, [x, *model.trainable_variables], output_gradients=upstream)

    def whole(x):
        if not fused:
            return function(x)
        with fused_layers(model):
            return function(x)

    compiled = tf.function(whole, jit_compile=jit_compile, autograph=False)
    return *compiled(x), compiled.get_concrete_function(x)


def operations(function):
    return {node.type for node in function.graph.get_operations()}


def assert_same(model, x, *, factor, dtype="float32"):
    """Compares outputs, gradients and state of a model with and without fused layers."""
    state = [v.numpy() for v in model.variables]
    upstream = images(model(x).shape, seed=2, dtype=model.compute_dtype)
    found = []
    for fused in (False, True):
        for variable, value in zip(model.variables, state, strict=True):
            variable.assign(value)
        y, gradients, function = traced(model, x, fused=fused, upstream=upstream)
        values = [y, *gradients, *model.non_trainable_variables]
        found.append([np.array(tf.cast(v, tf.float64)) for v in values])
    for expected, received in zip(*found, strict=True):
        scale = max(np.abs(expected).max(), 1e-3)
        assert np.abs(received - expected).max() <= factor * EPS[dtype] * scale
    return operations(function)
