"""Layers on sequences, computed on a matrix of all tokens, do what Keras' own do."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from fusing import assert_same, images, network, operations

from tfmp import policies
from tfmp.training.fused import fused_layers

layers = keras.layers


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_dense_layers_on_sequences_are_one_product(policy):
    with policies.scope(policy):
        model = network(
            layers.Dense(4, activation="gelu"),
            layers.EinsumDense("btp,pd->btd", (7, 6), bias_axes="td", activation="relu"),
            layers.Dense(3, use_bias=False),
            shape=(7, 5),
        )
    compute = model.compute_dtype
    found = assert_same(model, images((4, 7, 5), dtype=compute), factor=16, dtype=compute)
    # Else the gradient of the weights is one for each example, and their sum.
    assert "MatMul" in found and "BatchMatMulV2" not in found


def test_the_gradient_of_a_bias_with_positions_is_a_product():
    """For a sum over the examples XLA would lay out all sequences in another way."""
    model = network(
        layers.EinsumDense("btp,pd->btd", (7, 6), bias_axes="td", activation="linear"), shape=(7, 5)
    )
    assert "Sum" not in assert_same(model, images((4, 7, 5)), factor=4)


def test_dense_layers_on_sequences_of_unknown_length_and_on_vectors():
    model = network(layers.Dense(3), shape=(None, 5))
    x = images((4, 7, 5))
    with fused_layers(model):
        function = tf.function(model).get_concrete_function(tf.TensorSpec((None, None, 5)))
    np.testing.assert_allclose(function(x), model(x), rtol=1e-6)
    assert_same(network(layers.Dense(3), shape=(5,)), images((4, 5)), factor=0)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "settings", [{}, {"center": False}, {"scale": False}, {"epsilon": 1.0}, {"axis": 2}]
)
def test_layer_normalization(policy, settings):
    with policies.scope(policy):
        model = network(layers.LayerNormalization(**settings), shape=(7, 16))
    for weight in model.weights:
        weight.assign(1 + images(weight.shape, seed=5) / 2)
    compute = model.compute_dtype
    found = assert_same(model, images((6, 7, 16), dtype=compute), factor=8, dtype=compute)
    assert "Reshape" in found


def test_layer_normalization_of_large_values_in_half_precision():
    """Their squares, and their sum, are beyond 65504."""
    with policies.scope("mixed_float16"):
        model = network(layers.LayerNormalization(), shape=(7, 256))
    x = 60000 + 16 * images((4, 7, 256), dtype="float16")
    assert_same(model, x, factor=8, dtype="float16")


def test_second_derivatives_of_layer_normalization_are_true():
    model = network(layers.LayerNormalization(), shape=(3, 8))
    x = images((2, 3, 8))

    def penalty(fused):
        context = fused_layers(model) if fused else contextlib.nullcontext()
        with context, tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(model(x) ** 3)
            loss = tf.reduce_sum(tape.gradient(y, x) ** 2)
        return outer.gradient(loss, x)

    expected = penalty(False)
    np.testing.assert_allclose(penalty(True), expected, atol=1e-4 * np.abs(expected).max())


def test_sequences_are_added_as_rows():
    inputs = [keras.Input((7, 5)) for _ in range(3)]
    model = keras.Model(inputs, layers.Add()(inputs))
    x = [images((4, 7, 5), seed=seed) for seed in range(3)]
    with fused_layers(model):
        function = tf.function(lambda x: model(x), autograph=False)
        found = operations(function.get_concrete_function(x))
        np.testing.assert_array_equal(function(x), x[0] + x[1] + x[2])
    assert "Reshape" in found


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_sums_with_broadcasting_and_of_images_and_other_axes_are_left_to_keras():
    inputs = [keras.Input((7, 5)), keras.Input((1, 5))]
    of_images = [keras.Input((2, 7, 5))] * 2
    model = keras.Model(inputs + of_images[:1], [layers.Add()(inputs), layers.Add()(of_images)])
    x = [images((4, 7, 5)), images((4, 1, 5)), images((4, 2, 7, 5))]
    with fused_layers(model):
        function = tf.function(lambda x: model(x), autograph=False)
        assert "Reshape" not in operations(function.get_concrete_function(x))
        np.testing.assert_array_equal(function(x)[0], x[0] + x[1])
    by_variance = layers.LayerNormalization(rms_scaling=True)
    for layer in (
        layers.LayerNormalization(axis=1),
        layers.LayerNormalization(axis=[1, 2]),
        by_variance,
    ):
        model = network(layer, shape=(7, 16))
        assert_same(model, images((6, 7, 16)), factor=0)
