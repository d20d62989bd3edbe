"""GELU with its gradient written out computes what Keras' does, and keeps its input alone."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.training.gelu import closed_gelu, gelu, keras_gelu

EXTREMES = [0.0, -0.0, 1e4, -1e4, 6e-5, np.inf]


def inputs(dtype):
    return tf.cast(np.concatenate([np.linspace(-9, 9, 1001), EXTREMES]), dtype)


def with_gradients(function, x):
    """Values, and first and second derivatives."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = function(x)
        slope = inner.gradient(y, x)
    return y, slope, outer.gradient(slope, x)


@pytest.mark.parametrize("approximate", [False, True])
def test_values_and_derivatives_are_those_of_the_formula(approximate):
    x = inputs(tf.float64)[:-1]  # (Keras' own slope at infinity is NaN)
    found = with_gradients(lambda x: gelu(x, approximate), x)
    expected = with_gradients(lambda x: keras_gelu(x, approximate), x)
    for got, keras_own in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, keras_own, atol=2e-8)  # Keras has constants of float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_rounds_once(dtype, approximate, jit_compile):
    x = inputs(dtype)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(x):
        return with_gradients(lambda x: gelu(x, approximate), x)[:2]

    found = run(x)
    expected = with_gradients(lambda x: gelu(x, approximate), tf.cast(x, tf.float64))
    precision = {"float32": 4e-6, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for got, exact in zip(found, expected, strict=False):
        assert got.dtype == dtype
        got, exact = tf.cast(got, tf.float64).numpy()[:-1], exact.numpy()[:-1]
        assert (np.abs(got - exact) <= precision * np.maximum(np.abs(exact), 1)).all()
    large, small, *_ = found[1][-4:]
    assert (large, small, found[0][-1]) == (1, 0, np.inf)


@pytest.mark.parametrize("approximate", [False, True])
def test_the_backward_pass_takes_nothing_but_the_input(approximate):
    """What XLA computes twice it would compute once and keep, were it the same."""
    run = tf.function(
        lambda x: with_gradients(lambda x: gelu(x, approximate), x)[:2],
        jit_compile=True,
        autograph=False,
    )
    text = run.experimental_get_compiler_ir(inputs(tf.float32))(stage="optimized_hlo")
    assert text.count(" exponential(" if approximate else " erf(") == 2


def test_keras_calls_it_in_the_context_and_its_own_behind_it():
    x = tf.Variable(inputs(tf.float16)[:1001])

    def operations():
        def run():
            return keras.activations.gelu(x), keras.ops.gelu(x, approximate=False)

        graph = tf.function(run, autograph=False).get_concrete_function().graph
        return [node.type for node in graph.get_operations()]

    with contextlib.suppress(ZeroDivisionError), closed_gelu():
        assert {"Erf"} == {name for name in operations() if name.startswith("Erf")}
        raise ZeroDivisionError
    assert "Erfc" in operations()
