"""Cross entropy and accuracy of integer labels compute what Keras' do, in fewer passes."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow import nn

from tfmp.training import cross_entropy as module
from tfmp.training.cross_entropy import (
    closed_cross_entropy,
    cross_entropy,
    is_top_one,
    keras_cross_entropy,
)

CLASSES = 11


@pytest.fixture
def many(monkeypatch):
    """Few classes are many."""
    monkeypatch.setattr(module, "MANY", 1)


def data(dtype="float32", shape=(4, 6), scale=3.0):
    generator = np.random.default_rng(0)
    logits = tf.cast(scale * generator.normal(size=(*shape, CLASSES)), dtype)
    return tf.constant(generator.integers(0, CLASSES, shape)), logits


def by_keras(labels, logits):
    return keras_cross_entropy(labels, logits, from_logits=True)


def with_gradients(function, logits):
    """Values, and first and second derivatives of a sum with unequal weights."""
    weights = tf.cast(tf.range(1, 1 + logits.shape[-2]), logits.dtype)
    with tf.GradientTape() as outer:
        outer.watch(logits)
        with tf.GradientTape() as inner:
            inner.watch(logits)
            losses = function(logits)
            total = tf.reduce_sum(losses * weights)
        slope = inner.gradient(total, logits)
        squares = tf.reduce_sum(slope**2)
    return losses, slope, outer.gradient(squares, logits)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_values_and_derivatives_are_those_of_keras(shape, jit_compile):
    labels, logits = data("float64", shape)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(logits):
        return [
            with_gradients(lambda x, f=function: f(labels, x), logits)
            for function in (cross_entropy, by_keras)
        ]

    for got, keras_own in zip(*run(logits), strict=True):
        np.testing.assert_allclose(got, keras_own, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_half_precision_is_rounded_once(dtype, jit_compile):
    labels, logits = data(dtype)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(logits):
        return with_gradients(lambda x: cross_entropy(labels, x), logits)[:2]

    found = run(logits)
    exact = with_gradients(lambda x: cross_entropy(labels, x), tf.cast(logits, tf.float64))
    precision = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for got, expected in zip(found, exact, strict=False):
        assert got.dtype == dtype
        got, expected = tf.cast(got, tf.float64).numpy(), expected.numpy()
        assert (np.abs(got - expected) <= 1.01 * precision * np.maximum(np.abs(expected), 1)).all()


@pytest.mark.parametrize("label", [-1, CLASSES, 2**32 + 3])
def test_the_loss_and_gradient_of_no_class_are_nan_and_no_others(label):
    labels, logits = data(shape=(3,))
    labels = tf.tensor_scatter_nd_update(labels, [[1]], [label])

    @tf.function(jit_compile=True, autograph=False)
    def run(logits):
        return with_gradients(lambda x: cross_entropy(labels, x), logits)[:2]

    losses, slope = run(logits)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, False])
    assert np.isfinite(slope.numpy()[::2]).all()
    np.testing.assert_array_equal(is_top_one(labels, logits)[1], 0)


@pytest.mark.parametrize(("place", "value"), [(0, np.inf), (3, np.inf), (3, np.nan)])
def test_logits_that_are_not_finite_leave_no_finite_gradient(place, value):
    """So the loss scale sees them, whether they are the label's or not."""
    logits = tf.tensor_scatter_nd_update(tf.zeros([1, CLASSES]), [[0, place]], [value])
    found = with_gradients(lambda x: cross_entropy(tf.constant([0]), x), logits)
    assert not np.isfinite(found[0]) and not np.isfinite(found[1]).all()


def test_classes_that_are_masked_have_no_gradient():
    logits = tf.constant([[0.0, -np.inf, 0.0]])
    losses, slope, _ = with_gradients(lambda x: cross_entropy(tf.constant([2]), x), logits)
    np.testing.assert_allclose(losses, [np.log(2)])
    np.testing.assert_allclose(slope, [[0.5, 0, -0.5]])


def test_the_loss_is_not_summed_over_the_classes():
    """Over them XLA takes the largest logit and the sum of exp, and with Keras' the loss."""
    labels, logits = data()

    def reductions(function):
        run = tf.function(
            lambda x: with_gradients(lambda x: function(labels, x), x)[:2],
            jit_compile=True,
            autograph=False,
        )
        return run.experimental_get_compiler_ir(logits)(stage="optimized_hlo").count(" reduce(")

    assert (reductions(cross_entropy), reductions(by_keras)) == (2, 3)


def test_keras_calls_it_in_the_context_and_its_own_behind_it(monkeypatch, many):
    labels, logits = data("float16")
    losses = [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction=None, ignore_class=3
        ),
    ]

    def values(labels):
        return [loss(labels, logits).numpy() for loss in losses]

    own = values(labels)

    def operations():
        graph = tf.function(lambda: losses[0](labels, logits), autograph=False)
        graph = graph.get_concrete_function().graph
        return {node.type for node in graph.get_operations()}

    fused = "SparseSoftmaxCrossEntropyWithLogits"
    with contextlib.suppress(ZeroDivisionError), closed_cross_entropy():
        assert fused not in operations()
        for found in (values(labels), values(labels[..., None])):
            for a, b in zip(found, own, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-3)
        monkeypatch.setattr(module, "MANY", CLASSES + 1)
        assert fused in operations()
        monkeypatch.setattr(module, "MANY", CLASSES)
        raise ZeroDivisionError
    assert fused in operations()


@pytest.mark.parametrize(
    ("shapes", "kwargs"),
    [
        (((4,), (4, 3)), {}),  # probabilities
        (((4, 5), (4, 5, 3)), {"from_logits": True, "axis": 2}),
    ],
)
def test_what_else_keras_takes(many, shapes, kwargs):
    labels = tf.ones(shapes[0], tf.int32)
    outputs = tf.fill(shapes[1], 1 / 3)
    expected = keras.ops.sparse_categorical_crossentropy(labels, outputs, **kwargs)
    with closed_cross_entropy():
        found = keras.ops.sparse_categorical_crossentropy(labels, outputs, **kwargs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("shapes", [((5,), (4, 3)), ((4,), (3,))])
def test_shapes_that_do_not_fit_are_refused(many, shapes):
    labels, outputs = tf.ones(shapes[0], tf.int32), tf.ones(shapes[1])
    with closed_cross_entropy(), pytest.raises(ValueError, match=r"Arguments? `.* must have"):
        nn.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_accuracy_is_that_of_keras_also_where_logits_are_equal(jit_compile):
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, (50, 40))
    logits = tf.constant(generator.integers(0, 3, (50, 40, 4)), "float16")
    weights = generator.random((50, 40))
    metric = keras.metrics.MeanMetricWrapper(is_top_one)
    expected = keras.metrics.SparseCategoricalAccuracy()
    expected.update_state(labels, logits, weights)
    tf.function(metric.update_state, jit_compile=jit_compile, autograph=False)(
        tf.constant(labels), logits, tf.constant(weights, "float32")
    )
    assert float(metric.result()) == pytest.approx(float(expected.result()), rel=1e-6)
    by_place = keras.metrics.sparse_categorical_accuracy(labels, logits)
    np.testing.assert_array_equal(is_top_one(labels, logits), by_place)


def test_none_is_the_largest_beside_nan():
    logits = tf.constant([[np.nan, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(is_top_one([1, 1], logits), [0, 1])
