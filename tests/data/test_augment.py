"""Augmentation by what a person can check, with and without XLA."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tfmp.data import augment
from tfmp.data import randaugment as rand

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


def changed(name, image, more=True):
    """One image after one change of color by `randaugment`'s table, strength and rounding."""
    blend = tf.constant(rand.BLEND * (1 if more else -1), tf.int32, [1, 1, 1, 1])
    function = {f.__name__: f for f in rand.COLORS}[name]
    return function(tf.constant(image[None], tf.int32), blend)[0].numpy()


@pytest.mark.parametrize("more", [False, True])
def test_changes_of_color_equal_pillows(more):
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype(np.uint8)
    pillow = Image.fromarray(image)
    factor = 1 + (1 if more else -1) * rand.BLEND / rand.BLEND_UNIT
    expected = {
        "_brightness": ImageEnhance.Brightness(pillow).enhance(factor),
        "_color": ImageEnhance.Color(pillow).enhance(factor),
        "_contrast": ImageEnhance.Contrast(pillow).enhance(factor),
        "_sharpness": ImageEnhance.Sharpness(pillow).enhance(factor),
        "_posterize": ImageOps.posterize(pillow, 7),
        "_solarize": ImageOps.solarize(pillow, 178),
        "_autocontrast": ImageOps.autocontrast(pillow),
    }
    assert set(expected) == {f.__name__ for f in rand.COLORS}
    for name, theirs in expected.items():
        off = np.abs(changed(name, image, more) - np.asarray(theirs).astype(int))
        assert off.max() <= 1, name  # Pillow rounds blends down


def test_moves_of_randaugment_are_shifts_shears_and_turns():
    """Each move with each sign, on an image that says where each pixel was."""
    size = 41  # so shifts are of 5.6 pixels
    rows, columns = np.mgrid[:size, :size]
    places = tf.constant(np.stack([rows, columns], -1)[None], tf.int32)
    middle = size // 2

    def at(index, sign, row, column):
        """Where the pixel at (row, column) from the middle came from; None: from outside."""
        stay = tf.constant([len(rand.MOVES)])
        zero = tf.constant([0])
        moved = rand._moved(places + 1, [tf.constant([index]), stay], [tf.constant([sign]), zero])
        found = moved[0, middle + row, middle + column].numpy() - 1
        return None if (found < 0).any() else tuple(map(int, found - middle))

    slope, angle = rand.SHEAR, rand.ANGLE
    for sign, s in ((0, -1), (1, 1)):
        assert at(0, sign, 0, 15) == (round(s * slope * 15), 15)
        assert at(1, sign, 15, 0) == (15, round(s * slope * 15))
        assert at(2, sign, 0, 3) == (s * 6, 3)
        assert at(3, sign, 3, 0) == (3, s * 6)
        assert at(2, sign, s * middle, 0) is None
        turned = (round(s * np.sin(angle) * 15), round(np.cos(angle) * 15))
        assert at(4, sign, 0, 15) == turned
    assert at(len(rand.MOVES), 0, 7, 3) == (7, 3)


def test_randaugment_draws_every_change_and_leaves_some_images():
    images = tf.repeat(some_images(1, 16, 3, tf.uint8), 2000, axis=0)
    words = augment._random_words([2000, 2 * rand.ROUNDS], SEED)
    count = len(rand.MOVES) + len(rand.COLORS) + 1
    chosen = words.numpy()[:, : rand.ROUNDS] % count
    assert np.bincount(chosen.ravel(), minlength=count).min() > 0.8 * 2000 * rand.ROUNDS / count
    out = compiled(rand.randaugment, images, words).numpy()
    same = (out == images.numpy()).all(axis=(1, 2, 3))
    assert same[(chosen == count - 1).all(axis=1)].all()
    assert not same[(chosen < len(rand.MOVES)).any(axis=1) & (chosen[:, 0] != chosen[:, 1])].any()


@pytest.mark.parametrize("name", augment.OF_MASKS)
@pytest.mark.parametrize("run", [lambda f, *x: f(*x), compiled], ids=["plain", "xla"])
def test_a_mask_moves_with_its_image(name, run):
    masks = tf.cast(np.random.default_rng(1).integers(1, 11, (32, 16, 16)), tf.int64)
    images = tf.stack([10 * tf.cast(masks, tf.float32), some_images(32, 16)[..., 0]], axis=-1)

    def change(images, masks, seed):
        return augment.with_masks(augment.AUGMENTATIONS[name], images, masks, seed)

    moved_images, moved_masks = run(change, images, masks, SEED)
    assert moved_masks.dtype == tf.int64 and moved_images.shape == images.shape
    np.testing.assert_array_equal(moved_images[..., 0], 10 * moved_masks)
    np.testing.assert_array_equal(moved_images, augment.AUGMENTATIONS[name](images, SEED))
    assert (name == "none") == np.array_equal(moved_masks, masks)
    # Class 0 comes in from outside, where the augmentation is no mere flip.
    assert (np.asarray(moved_masks) == 0).any() == (name not in ("none", "flip"))
