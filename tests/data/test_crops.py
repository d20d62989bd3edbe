"""Crops of encoded images: geometry, determinism, and what JPEGs and others share."""

import numpy as np
import pytest
import tensorflow as tf

from tfmp.data import crops


def ramp(height=120, width=160):
    """Red grows by row, green by column, so that a crop shows where it was cut."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def cut(data, number, size=80):
    return crops.random(data, (size, size, 3), tf.constant([0, number], tf.int64)).numpy()


def test_a_random_crop_is_a_function_of_its_seed():
    data = tf.io.encode_png(ramp())
    np.testing.assert_array_equal(cut(data, 1), cut(data, 1))
    assert len({cut(data, number).tobytes() for number in range(8)}) == 8


def test_a_random_crop_is_upright_and_within_the_image():
    data = tf.io.encode_png(ramp())
    for number in range(20):
        image = cut(data, number).astype(int)
        assert (np.diff(image[:, :, 0], axis=0) >= 0).all()
        assert (np.diff(image[:, :, 1], axis=1) >= 0).all()
        height, width = np.ptp(image[:, 0, 0]) + 1, np.ptp(image[0, :, 1]) + 1
        assert 0.06 < height * width / (120 * 160) <= 1 and 0.7 < width / height < 1.4


def test_jpeg_and_png_are_cut_at_the_same_place():
    jpeg, png = tf.io.encode_jpeg(ramp(), quality=100), tf.io.encode_png(ramp())
    for number in range(5):
        difference = cut(jpeg, number).astype(int) - cut(png, number)
        assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("margin", [1.0, crops.EVALUATION_MARGIN])
def test_the_center_is_the_center(margin):
    image = crops.center(tf.io.encode_png(ramp()), (60, 60, 3), margin).numpy()
    np.testing.assert_allclose(image[:, :, 0].mean(), 59.5, atol=1)
    np.testing.assert_allclose(image[:, :, 1].mean(), 79.5, atol=1)
    step = np.diff(image[:, 0, 0].astype(int)).mean()
    np.testing.assert_allclose(step, 2 / margin, rtol=0.02)


def test_an_image_of_the_right_size_stays_as_it_is():
    np.testing.assert_array_equal(crops.center(tf.io.encode_png(ramp()), (120, 160, 3)), ramp())
