"""Attention in parts equals Keras', gradients too, keeps no pair's weight, and goes unnoticed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models.attention import attention
from tfmp.training.attention import in_parts

TOKENS, HEADS, SIZE = 10, 2, 8


def model_of(dtype, *, causal, masked=False):
    inputs = [keras.Input((TOKENS, HEADS, SIZE), dtype=dtype) for _ in range(3)]
    mask = keras.Input((1, 1, TOKENS), dtype="bool") if masked else None
    outputs = attention(*inputs, causal=causal, mask=mask)
    return keras.Model([*inputs, mask] if masked else inputs, outputs)


def draw(dtype, masked=False):
    random = np.random.default_rng(0)
    inputs = [tf.cast(random.normal(size=(2, TOKENS, HEADS, SIZE)), dtype) for _ in range(3)]
    if masked:
        inputs.append(tf.constant(np.arange(TOKENS) < [[TOKENS], [4]])[:, None, None])
    return inputs


def results(model, inputs, size, jit_compile):
    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(inputs):
        with in_parts(model, size), tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = model(inputs)
            loss = tf.reduce_sum(tf.sin(tf.cast(outputs, tf.float32)))
        return [outputs, *tape.gradient(loss, inputs[:3])]

    return [np.asarray(x, np.float32) for x in run(inputs)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("dtype", "causal", "masked", "size"),
    [
        ("float32", True, False, 4),  # the last part has 2
        ("float32", True, True, 3),
        ("float32", False, True, 5),
        ("float16", True, False, 16),
        ("float16", False, False, 1),
    ],
)
def test_the_results_are_keras(dtype, causal, masked, size, jit_compile):
    model, inputs = model_of(dtype, causal=causal, masked=masked), draw(dtype, masked)
    expected = results(model, inputs, 0, jit_compile)
    found = results(model, inputs, size, jit_compile)
    atol = 2e-6 if dtype == "float32" else 4e-3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)
    assert not [x for x in model.operations if "call" in vars(x)]


def test_no_weight_of_a_pair_is_kept():
    """What the forward pass hands to the backward pass has no axis of the keys in it."""
    model = model_of("float32", causal=True)

    def pairs(size):
        with tf.Graph().as_default():
            inputs = [tf.compat.v1.placeholder(tf.float32, x.shape) for x in draw("float32")]
            with in_parts(model, size):
                outputs = model(inputs)
            gradients = tf.gradients(outputs, inputs)
            before = set(_ancestors(outputs.op))
            kept = {
                x
                for op in _ancestors(*(x.op for x in gradients)) - before
                for x in op.inputs
                if x.op in before
            }
        return [x.shape for x in kept if x.shape.rank == 4 and x.shape[1] == HEADS]

    assert pairs(0)
    assert not pairs(4)


def _ancestors(*ops):
    seen, left = set(), list(ops)
    while left:
        op = left.pop()
        if op not in seen:
            seen.add(op)
            left += [x.op for x in op.inputs]
    return seen
