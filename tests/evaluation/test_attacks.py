"""Attacks on linear models, whose weakest change a person can compute."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import policies
from tfmp.evaluation import attacks

SEED = tf.constant([3, 4], tf.int64)


def linear(weights, bias=0.0, policy="float32"):
    """Logits (w . x + bias, -w . x - bias) / 2 of images of 2x2."""
    with policies.scope(policy):
        images = keras.Input((2, 2, 1))
        model = keras.Model(images, layers.Dense(2)(layers.Flatten()(images)))
    half = np.array([0.5, -0.5])
    model.set_weights([np.outer(weights, half), bias * half])
    return model


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return tf.constant(rng.uniform(60, 190, (300, 2, 2, 1)), tf.float32)


WEIGHTS = np.array([0.3, -0.2, 0.1, -0.4])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("norm", attacks.NORMS)
def test_a_linear_model_falls_where_its_margin_says(images, norm, jit_compile):
    model = linear(WEIGHTS, bias=25.0)
    margins = tf.reshape(images, [300, 4]).numpy() @ WEIGHTS + 25
    labels = tf.constant(np.where(margins > 0, 0, 1), tf.int64)
    # Hoelder: the most that a change of length epsilon moves w . x.
    reach = 20 * (np.abs(WEIGHTS).sum() if norm == "linf" else np.sqrt((WEIGHTS**2).sum()))
    stands = np.abs(margins) > reach
    assert 0.2 < stands.mean() < 0.9
    uphill = attacks.stepper(attacks.ascent(model), norm, jit_compile=jit_compile)
    epsilon = tf.constant(20.0)
    many = {"norm": norm, "steps": 30, "seed": SEED}
    # From a random start the steps of l2 come close to the best direction, and not all the way.
    for changed, close in (
        (attacks.fgsm(uphill, images, labels, epsilon), 1e-3),
        (attacks.pgd(uphill, images, labels, epsilon, **many), 1e-3 if norm == "linf" else 0.05),
    ):
        right = model(changed).numpy().argmax(1) == labels.numpy()
        assert (right == stands)[np.abs(np.abs(margins) - reach) > close * reach].all()
        assert lengths(changed - images, norm).max() <= 20 + 1e-3


def lengths(change, norm):
    change = np.abs(np.reshape(change, [len(change), -1]).astype("float64"))
    return change.max(1) if norm == "linf" else np.sqrt((change**2).sum(1))


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_images_stay_images(norm):
    edge = tf.constant(np.tile([0.0, 255.0], (50, 2)).reshape(50, 2, 2, 1), tf.float32)
    labels = tf.zeros(50, tf.int64)
    uphill = attacks.stepper(attacks.ascent(linear(WEIGHTS)), norm, jit_compile=False)
    more = {"norm": norm, "steps": 5, "seed": SEED}
    for changed in (
        attacks.fgsm(uphill, edge, labels, tf.constant(30.0)),
        attacks.pgd(uphill, edge, labels, tf.constant(30.0), **more),
        attacks.noise(edge, tf.constant(30.0), norm, SEED),
    ):
        assert changed.dtype == tf.float32
        assert changed.numpy().min() >= 0 and changed.numpy().max() <= 255


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_noise_is_as_large_as_an_attack(images, norm):
    change = attacks.noise(images, tf.constant(20.0), norm, SEED) - images
    np.testing.assert_allclose(lengths(change, norm), 20, rtol=1e-4)
    assert abs(np.mean(change)) < 2 and np.mean(change.numpy() > 0) == pytest.approx(0.5, abs=0.1)
    again = attacks.noise(images, tf.constant(20.0), norm, SEED) - images
    other = attacks.noise(images, tf.constant(20.0), norm, SEED + 1) - images
    assert (again.numpy() == change.numpy()).all() and (other.numpy() != change.numpy()).any()


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_the_random_start_fills_the_ball(norm):
    drawn = attacks._inside([2000, 2, 2, 1], tf.constant(3.0), norm, SEED)
    radii = lengths(drawn, norm)
    assert radii.max() <= 3 + 1e-5
    # Of 4 numbers uniform in a ball, the largest or the length is below r with (r / 3)^4.
    assert np.mean(radii < 2) == pytest.approx((2 / 3) ** 4, abs=0.035)


def test_small_gradients_still_have_a_direction():
    small = tf.fill([1, 2, 2, 1], 1e-30)
    np.testing.assert_allclose(attacks._direction(small, "l2"), np.full((1, 2, 2, 1), 0.5))
    np.testing.assert_array_equal(attacks._direction(small, "linf"), np.ones((1, 2, 2, 1)))


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_gradients_that_lead_nowhere_move_nothing(norm, bad):
    gradient = tf.constant(np.full((1, 2, 2, 1), bad), tf.float32)
    np.testing.assert_array_equal(attacks._direction(gradient, norm), np.zeros((1, 2, 2, 1)))


def test_half_precision_loses_small_gradients():
    images = tf.fill([1, 2, 2, 1], 200.0)
    labels = tf.zeros(1, tf.int64)
    # Logits of 10 and -10: the gradient is e^-20, under the smallest float16.
    for policy, lost in [("float32", False), ("mixed_float16", True), ("mixed_bfloat16", False)]:
        model = linear([0.1, 0, 0, 0], policy=policy)
        gradient = attacks.ascent(model, plain=True)(images, labels)
        assert gradient.dtype == tf.float32
        assert bool((gradient.numpy() == 0).all()) is lost
        gradient = attacks.ascent(model)(images, labels)
        np.testing.assert_allclose(gradient[0, 0, 0], [-0.1], rtol=0.01)


def test_the_gradient_is_that_of_the_cross_entropy():
    rng = np.random.default_rng(0)
    images = keras.Input((2, 2, 1))
    model = keras.Model(images, layers.Dense(5)(layers.Flatten()(images)))
    x = tf.constant(rng.uniform(0, 1, (20, 2, 2, 1)), tf.float32)
    labels = tf.constant(rng.integers(5, size=20))
    with tf.GradientTape() as tape:
        tape.watch(x)
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(x), from_logits=True)
    expected = tape.gradient(losses, x).numpy()
    np.testing.assert_allclose(attacks.ascent(model, plain=True)(x, labels), expected, atol=1e-6)
    wrong = 1 - keras.ops.softmax(model(x)).numpy()[np.arange(20), labels]
    scaled = attacks.ascent(model)(x, labels).numpy() * wrong[:, None, None, None]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
