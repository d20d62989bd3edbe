"""Attention against a float64 reference, and at float16's limits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models.attention import attention


def reference(queries, keys, values, seen):
    """The published formula in float64; `seen` is [batch, queries, keys] bool."""
    logits = np.einsum("bqhd,bkhd->bhqk", queries, keys) / np.sqrt(queries.shape[-1])
    logits = np.where(seen[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), values)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_published_formula(dtype, causal, masked):
    inputs = [
        draw(2, 6, 2, 8, seed=seed).astype(np.float16).astype(np.float64) for seed in range(3)
    ]
    seen = np.ones((2, 6, 6), bool)
    if causal:
        seen = np.tril(seen)
    mask = None
    if masked:
        mask = np.array([[True] * 6, [True, True, True, False, False, False]])
        seen = seen & mask[:, None]
        mask = mask[:, None, None]
    found = attention(*(tf.cast(x, dtype) for x in inputs), causal=causal, mask=mask)
    assert found.dtype == dtype
    atol = {"float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
    np.testing.assert_allclose(np.float64(found), reference(*inputs, seen), atol=atol)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_large_products_of_queries_and_keys_stay_finite_in_float16(jit_compile):
    """Undivided they would pass 65,504: Keras' own attention then gives NaN."""
    heads, size = 2, 64
    x = np.random.default_rng(0).choice([-40.0, 40.0], (2, 5, heads, size))
    x = tf.constant(x, tf.float16)
    assert size * 40**2 > 65_504
    theirs = keras.layers.MultiHeadAttention(heads, size, use_bias=False, dtype="mixed_float16")
    theirs.build((2, 5, heads * size), (2, 5, heads * size))
    eye = np.eye(heads * size, dtype=np.float32).reshape(-1, heads, size)
    for dense in (theirs._query_dense, theirs._key_dense, theirs._value_dense):
        dense.kernel.assign(eye)

    @tf.function(jit_compile=jit_compile)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = attention(x, x, x)
        flat = tf.reshape(x, (2, 5, heads * size))
        return y, tape.gradient(y, x), theirs(flat, flat)

    ours, gradients, naive = (np.asarray(y, np.float32) for y in run(x))
    assert np.isnan(naive).any()
    assert np.isfinite(ours).all() and np.isfinite(gradients).all()
    np.testing.assert_array_equal(ours, x)  # each token attends to itself alone


def test_the_softmax_of_thousands_of_keys_is_exact_in_float16():
    """In float16 a sum of ones ends at 2,048."""
    x = tf.zeros((1, 4096, 1, 8), tf.float16)
    found = attention(x[:, :1], x, tf.ones_like(x))
    np.testing.assert_array_equal(found, np.ones((1, 1, 1, 8)))


def test_a_query_that_sees_no_key_gives_no_nan():
    x = tf.constant(draw(1, 4, 1, 8), tf.float16)
    found = attention(x, x, x, mask=np.zeros((1, 1, 1, 4), bool))
    mean = np.broadcast_to(np.mean(np.float32(x), axis=1, keepdims=True), x.shape)
    np.testing.assert_allclose(found, mean, atol=1e-3)
