"""Augmentation by what a person can check, with and without XLA."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfmp.data import augment

SEED = tf.constant([3, 7])


def compiled(function, *arguments):
    return tf.function(function, jit_compile=True)(*arguments)


def some_images(batch=64, size=8, channels=1, dtype=tf.float32):
    pixels = np.random.default_rng(0).uniform(1, 255, (batch, size, size, channels))
    return tf.cast(pixels, dtype)


def moved(image, down, right):
    """An image moved over black, written plainly."""
    result = np.zeros_like(image)
    height, width = image.shape[:2]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [tf.float32, tf.uint8])
def test_xla_agrees_bit_for_bit_and_shape_and_dtype_stay(name, dtype):
    images = some_images(16, 16, 3, dtype)
    function = augment.AUGMENTATIONS[name]
    plain, with_xla = function(images, SEED), compiled(function, images, SEED)
    assert plain.dtype == with_xla.dtype == dtype
    np.testing.assert_array_equal(plain, with_xla)
    assert plain.shape == images.shape


@pytest.mark.parametrize("name", sorted(set(augment.AUGMENTATIONS) - {"none"}))
def test_draws_follow_the_seed_and_differ_between_images(name):
    function = augment.AUGMENTATIONS[name]
    images = tf.repeat(some_images(1, 16), 64, axis=0)
    first = function(images, SEED).numpy()
    np.testing.assert_array_equal(first, function(images, tf.cast(SEED, tf.int64)))
    assert (first != function(images, SEED + 1).numpy()).any()
    assert len({image.tobytes() for image in first}) > 1


def test_none_changes_nothing():
    images = some_images()
    np.testing.assert_array_equal(augment.none(images, SEED), images)


@pytest.mark.parametrize(("name", "size", "reach"), [("shift", 8, 1), ("crop", 16, 2)])
def test_every_result_is_one_of_the_moves_and_all_of_them_occur(name, size, reach):
    images = some_images(400, size).numpy()
    results = augment.AUGMENTATIONS[name](images, SEED).numpy()
    seen = set()
    for image, result in zip(images, results, strict=True):
        seen |= {
            (down, right)
            for down in range(-reach, reach + 1)
            for right in range(-reach, reach + 1)
            if (moved(image, down, right) == result).all()
        }
    assert len(seen) == (2 * reach + 1) ** 2
    assert sum((image == result).all() for image, result in zip(images, results, strict=True)) > 0


def test_flip_mirrors_about_half_and_leaves_the_rest():
    images = some_images(400).numpy()
    results = augment.flip(images, SEED).numpy()
    kept = (results == images).all(axis=(1, 2, 3))
    mirrored = (results == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all() and 150 < kept.sum() < 250


def test_crop_flip_is_crop_then_flip_with_the_same_draws():
    images = some_images(32, 16)
    expected = augment.flip(augment.crop(images, SEED), SEED)
    np.testing.assert_array_equal(augment.crop_flip(images, SEED), expected)


def test_mixup_blends_neighbors_by_one_weight():
    images, labels = some_images(4), tf.one_hot([0, 1, 2, 3], 4)
    mixed, mixed_labels = compiled(
        lambda *arguments: augment.mixup(*arguments, alpha=0.4), images, labels, SEED
    )
    weight = float(augment.beta(SEED, 0.4))
    assert 0 <= weight <= 1
    np.testing.assert_allclose(np.diag(mixed_labels), weight, rtol=1e-6)
    np.testing.assert_allclose(mixed_labels[1, 0], 1 - weight, rtol=1e-6)
    np.testing.assert_allclose(mixed[2], weight * images[2] + (1 - weight) * images[1], rtol=1e-5)
    assert mixed.dtype == mixed_labels.dtype == tf.float32


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_the_distribution_of_beta(alpha):
    seeds = tf.stack([tf.zeros(2000, tf.int32), tf.range(2000)], axis=1)
    draws = compiled(
        lambda seeds: tf.map_fn(lambda seed: augment.beta(seed, alpha), seeds, tf.float32), seeds
    )
    drawn = draws.numpy().astype(float)
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_label_smoothing():
    smoothed = augment.label_smoothing(tf.one_hot([1], 4), 0.2)
    np.testing.assert_allclose(smoothed, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alpha above 0"):
        augment.beta(SEED, 0.0)
    with pytest.raises(ValueError, match="epsilon"):
        augment.label_smoothing(tf.one_hot([1], 4), 1.0)
