"""Fused layers compute what Keras' own do, values and gradients, and leave the model as it was."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from fusing import EPS, assert_same, images, network, operations, traced

import tfmp
from tfmp import models, policies
from tfmp.training.fused import fused_layers, max_pool

layers = keras.layers


class Normalization(layers.BatchNormalization):
    """A class of the user's own."""


# --- pooling


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("pool_size", "strides"),
    [*itertools.product([(3, 3), (2, 3), (2, 2)], [(2, 2), (1, 2), (3, 2)]), ((4, 4), (3, 3))],
)
def test_pooling_equals_tensorflows(pool_size, strides, padding):
    rng = np.random.default_rng(0)
    for shape in ((2, 7, 9, 3), (2, 8, 8, 3), (1, 12, 5, 2)):
        x = tf.constant(rng.permutation(np.prod(shape)).reshape(shape), tf.float32)  # no ties
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            theirs = tf.nn.max_pool2d(x, pool_size, strides, padding.upper())
            ours = max_pool(x, pool_size, strides, padding)
        np.testing.assert_array_equal(ours, theirs)
        upstream = images(theirs.shape)
        np.testing.assert_array_equal(
            tape.gradient(ours, x, upstream), tape.gradient(theirs, x, upstream)
        )


def test_of_equal_values_the_first_gets_the_gradient():
    x = tf.zeros((1, 3, 3, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = max_pool(x, (2, 2), (1, 1), "valid")
    expected = [[1, 1, 0], [1, 1, 0], [0, 0, 0]]  # by hand: four windows, each its upper left
    np.testing.assert_array_equal(tape.gradient(y, x)[0, :, :, 0], expected)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("jit_compile", [True, False])
def test_pooling_keeps_nan(position, jit_compile):
    values = np.arange(4, dtype="float16")
    values[position] = np.nan
    pool = tf.function(max_pool, jit_compile=jit_compile)
    assert np.isnan(pool(values.reshape(1, 2, 2, 1), (2, 2), (2, 2), "valid"))


def test_gradient_of_the_gradient_of_pooling():
    x, direction = images((1, 7, 7, 2)), images((1, 7, 7, 2), seed=3)

    def twice(pool):
        with tf.GradientTape() as outer:
            outer.watch(upstream)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = pool(x)
            first = tape.gradient(y, x, upstream)
        return outer.gradient(first, upstream, direction)

    upstream = images((1, 3, 3, 2), seed=4)
    ours = twice(lambda x: max_pool(x, (3, 3), (2, 2), "valid"))
    theirs = twice(lambda x: tf.nn.max_pool2d(x, 3, 2, "VALID"))
    np.testing.assert_array_equal(ours, theirs)


# --- layers


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_batch_normalization_and_relu(policy):
    with policies.scope(policy):
        relu = layers.Activation("relu")
        model = network(layers.BatchNormalization(), layers.ReLU(), layers.Dense(4), relu)
    compute = model.compute_dtype
    assert_same(model, images(dtype=compute), factor=128, dtype=compute)


@pytest.mark.parametrize(
    "settings", [{"axis": 1}, {"center": False}, {"scale": False}, {"momentum": 0.5}]
)
def test_batch_normalization_by_settings(settings):
    assert_same(network(layers.BatchNormalization(**settings)), images(), factor=128)


def test_inputs_by_name():
    normalization, relu = layers.BatchNormalization(), layers.ReLU()
    pool = layers.MaxPooling2D(2)
    model = network(normalization, relu, pool)
    x = images()
    with fused_layers(model):
        by_position = pool(relu(normalization(x, training=True)))
        by_name = pool(inputs=relu(inputs=normalization(inputs=x, training=True)))
    np.testing.assert_array_equal(by_position, by_name)


def test_batch_normalization_of_vectors():
    assert_same(network(layers.BatchNormalization(), shape=(5,)), images((9, 5)), factor=64)


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e6])
def test_variance_far_from_zero(offset):
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype("float32") + np.float32(offset)
    model = network(layers.BatchNormalization(momentum=0.0), shape=(4, 4, 3))
    traced(model, tf.constant(x), fused=True, upstream=None)
    mean, variance = (v.numpy() for v in model.non_trainable_variables)
    exact = x.astype("float64")
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("outlier", [1e3, -1e4])
@pytest.mark.parametrize("examples", [1, 8])
def test_variance_with_an_outlier_at_the_first_place(outlier, examples):
    x = np.random.default_rng(0).normal(size=(examples, 96, 96, 2)).astype("float32")
    x[0, 0, 0, 0] = outlier
    model = network(layers.BatchNormalization(momentum=0.0), shape=(96, 96, 2))
    traced(model, tf.constant(x), fused=True, upstream=None)
    _, variance = (v.numpy() for v in model.non_trainable_variables)
    # XLA adds up one by one on a CPU, and Keras' own is no better there.
    np.testing.assert_allclose(variance, x.astype("float64").var((0, 1, 2)), rtol=2e-3)


def test_nan_goes_through_normalization():
    x = images().numpy()
    x[0, 0, 0, 0] = np.nan
    model = network(layers.BatchNormalization(momentum=0.0))
    y, *_ = traced(model, tf.constant(x), fused=True, upstream=None)
    assert np.isnan(y[..., 0]).all() and np.isfinite(y[..., 1:]).all()
    for variable in model.non_trainable_variables:
        assert np.isnan(variable.numpy()).tolist() == [True, False, False, False, False]


def test_one_channel_in_front_and_batches_of_unknown_size():
    model = network(layers.BatchNormalization(axis=1), shape=(1, 6, 6))
    x, state = images((5, 1, 6, 6)), [v.numpy() for v in model.variables]
    specs = tf.TensorSpec((None, 1, 6, 6))

    @tf.function(jit_compile=True, input_signature=[specs])
    def fused(x):
        with fused_layers(model):
            return model(x, training=True)

    received = fused(x)
    for variable, value in zip(model.variables, state, strict=True):
        variable.assign(value)
    np.testing.assert_allclose(received, model(x, training=True), rtol=1e-5, atol=1e-6)


def test_second_derivatives_of_normalization_are_true():
    normalization = layers.BatchNormalization(dtype="float64")
    model = network(normalization, shape=(3,))
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 3)))
    weights = tf.constant(np.random.default_rng(1).normal(size=(5, 3)))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            with fused_layers(model):
                total = tf.reduce_sum(weights * normalization(x, training=True) ** 2)
        return tape.gradient(total, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        penalty = tf.reduce_sum(gradient(x) ** 2)
    received = tape.gradient(penalty, x)
    direction = np.random.default_rng(2).normal(size=(5, 3))
    high, low = (tf.reduce_sum(gradient(x + sign * 1e-5 * direction) ** 2) for sign in (1.0, -1.0))
    expected = float(high - low) / 2e-5
    assert float(tf.reduce_sum(received * direction)) == pytest.approx(expected, rel=1e-6)


def test_frozen_or_masked_normalization_is_left_to_keras():
    x = images()
    model = network(layers.BatchNormalization(trainable=False))
    assert_same(model, x, factor=0)
    masked = network(layers.Masking(), layers.BatchNormalization(), shape=(6, 3))
    values = images((4, 6, 3)).numpy()
    values[:, 4:] = 0
    assert_same(masked, tf.constant(values), factor=0)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize(
    "settings", [{}, {"strides": 2}, {"strides": (3, 2), "padding": "same"}, {"use_bias": False}]
)
def test_convolution_by_one(policy, settings):
    with policies.scope(policy):
        model = network(layers.Conv2D(7, 1, activation="relu", **settings))
    compute = model.compute_dtype
    found = assert_same(model, images(dtype=compute), factor=16, dtype=compute)
    assert ("Conv2D" if "strides" in settings else "MatMul") in found


def test_layers_that_are_left_to_keras():
    model = network(
        Normalization(),
        layers.BatchNormalization(synchronized=True),
        layers.BatchNormalization(renorm=True),
        layers.Conv2D(10, 1, groups=5),
        layers.Conv2D(4, 3),
        layers.MaxPooling2D(5),
        layers.ReLU(),
        shape=(12, 12, 5),
    )
    with fused_layers(model):
        methods = {"call", "convolution_op", "_moments"}
        assert not any(methods & vars(layer).keys() for layer in model.layers)
    assert_same(model, images((2, 12, 12, 5)), factor=0)


def test_a_layer_that_somebody_has_changed_is_left_alone():
    model = network(layers.MaxPooling2D(2), shape=(2, 2, 1))
    (layer,) = model.layers
    layer.call = lambda x: 3 * x
    with fused_layers(model):
        assert float(layer(tf.fill((1, 2, 2, 1), 2.0))[0, 0, 0, 0]) == 6
    assert "call" in vars(layer)


def test_pooling_of_integers_and_of_minus_infinity():
    pool = layers.MaxPooling2D(3, strides=2, padding="SAME")
    model = keras.Sequential([pool])
    with fused_layers(model):
        np.testing.assert_array_equal(pool(tf.ones((1, 5, 5, 1), tf.int32)), np.ones((1, 3, 3, 1)))
        lowest = pool(tf.fill((1, 5, 5, 1), -np.inf))
    np.testing.assert_array_equal(lowest, np.full((1, 3, 3, 1), -np.inf))


def test_images_of_unknown_size_are_pooled_by_keras():
    model = network(layers.MaxPooling2D(2), shape=(None, None, 5))
    with fused_layers(model):
        function = tf.function(model).get_concrete_function(tf.TensorSpec((None, None, None, 5)))
    assert "MaxPool" in operations(function)


@pytest.mark.gpu
@pytest.mark.parametrize(  # (in half precision windows have ties, decided by the last digit)
    ("kind", "policy"),
    [
        ("strided", "float32"),
        ("strided", "mixed_float16"),
        ("pool of 3", "float32"),
        ("pool of 2", "float32"),
    ],
)
def test_layers_that_xla_compiles_for_a_gpu(kind, policy):
    with policies.scope(policy):
        middle = {
            "strided": lambda: layers.Conv2D(128, 1, strides=2),
            "pool of 3": lambda: layers.MaxPooling2D(3, strides=2, padding="same"),
            "pool of 2": lambda: layers.MaxPooling2D(2),
        }[kind]()
        first = layers.Conv2D(64, 3, padding="same", use_bias=False)
        stack = [first, layers.BatchNormalization(), layers.ReLU(), middle, layers.Conv2D(64, 1)]
        model = network(*stack, shape=(56, 56, 16))
    x = images((8, 56, 56, 16), dtype=model.compute_dtype)
    assert_same(model, x, factor=16, dtype="float16")


@pytest.mark.gpu
def test_resnet50_trains_on_a_gpu():
    with policies.scope("mixed_float16"):
        model = models.build("resnet50", classes=10, input_shape=(224, 224, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tfmp.compile(model, keras.optimizers.SGD(0.01), loss=loss)
    tfmp.accelerate(model, fused_layers=True)
    x, y = np.random.default_rng(0).normal(size=(32, 224, 224, 3)), np.arange(32) % 10
    history = model.fit(x, y, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]


# --- in training


def whole_model():
    """All kinds of layers, some of them in a model within the model."""
    block = keras.Sequential(
        [layers.Conv2D(8, 1), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(8, 3)]
    )
    return network(
        layers.Conv2D(6, 3),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(3, strides=2),
        block,
        layers.Flatten(),
        layers.Dense(3, dtype="float32"),
        shape=(12, 12, 5),
    )


def fit(policy, **settings):
    keras.utils.set_random_seed(1)
    with policies.scope(policy):
        model = whole_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tfmp.compile(model, keras.optimizers.SGD(0.01), loss=loss)
    tfmp.accelerate(model, **settings)
    x, y = images((32, 12, 12, 5)).numpy(), np.arange(32) % 3
    history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model, history.history["loss"], model.evaluate(x, y, verbose=0)


@pytest.mark.parametrize(
    ("policy", "dtype", "microbatches"),
    [("float32", "float32", 1), ("mixed_float16", "float16", 2)],
)
def test_training_equals_training_without(policy, dtype, microbatches):
    plain, loss, evaluated = fit(policy, fused_layers=False, microbatches=microbatches)
    fused, fused_loss, fused_evaluated = fit(policy, fused_layers=True, microbatches=microbatches)
    np.testing.assert_allclose(fused_loss, loss, rtol=50 * EPS[dtype])
    np.testing.assert_allclose(fused_evaluated, evaluated, rtol=50 * EPS[dtype])
    differ = 0
    for a, b in zip(plain.variables, fused.variables, strict=True):
        if "float" in a.dtype:
            np.testing.assert_allclose(b, a, rtol=0, atol=50 * EPS[dtype])
            differ += not np.array_equal(a, b)
    assert differ  # else nothing was fused


def test_max_pooling_is_trained_by_xla_where_operations_are_deterministic():
    found = []
    for _ in range(3):
        found.append(fit("mixed_float16", fused_layers=False))
        tf.config.experimental.enable_op_determinism()  # XLA refuses its own gradient of pooling
    (_, usual, _), (a, loss, _), (b, same, _) = found
    np.testing.assert_allclose(loss, usual, rtol=50 * EPS["float16"])
    assert loss == same
    for x, y in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_step_is_fused_and_evaluation_is_not():
    model, *_ = fit("float32", fused_layers=True)
    data = (images((16, 12, 12, 5)), tf.zeros((16,), tf.int64))
    steps = model.make_train_function.__self__.steps
    train = operations(tf.function(steps.whole).get_concrete_function(data))
    assert "MaxPoolGrad" not in train and "MaxPool" not in train
    evaluation = operations(tf.function(steps.evaluation(0)).get_concrete_function(data))
    assert "MaxPool" in evaluation


def test_nothing_stays_in_the_layers(tmp_path):
    model, *_ = fit("mixed_float16", fused_layers=True)
    for layer in model._flatten_layers():
        assert not {"call", "_moments", "convolution_op"} & vars(layer).keys()
    model.save(tmp_path / "model.keras")
    x = images((4, 12, 12, 5))
    np.testing.assert_array_equal(tfmp.load(tmp_path / "model.keras").predict(x), model.predict(x))


def test_an_error_leaves_the_layers_as_they_were():
    model = network(layers.BatchNormalization())
    with pytest.raises(ZeroDivisionError), fused_layers(model):
        raise ZeroDivisionError
    assert "call" not in vars(model.layers[0])


@pytest.mark.parametrize(
    ("settings", "fused"),
    [({}, False), ({"fused_layers": True}, True), ({"jit_compile": False}, False)],
)
def test_without_a_gpu_only_if_asked_for(settings, fused):
    model = network(layers.Dense(1), shape=(5,))
    model.compile("sgd", "mse")
    tfmp.accelerate(model, **settings).make_train_function()
    assert model.make_train_function.__self__.steps.fused_layers is fused


def test_by_default_where_xla_compiles_for_a_gpu(monkeypatch):
    for jit_compile in (True, False):
        model = network(layers.Dense(1), shape=(5,))
        model.compile("sgd", "mse")
        tfmp.accelerate(model, jit_compile=jit_compile)
        with monkeypatch.context() as patch:
            patch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
            model.make_train_function()
        assert model.make_train_function.__self__.steps.fused_layers is jit_compile
