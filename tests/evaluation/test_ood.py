"""Other data sets, as a model takes them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmp import data, errors, evaluation
from tfmp.evaluation import ood


def test_images_in_other_channels():
    gray = tf.constant(np.arange(8).reshape(2, 2, 2, 1), tf.uint8)
    color = ood.fit(gray, (2, 2, 3))
    assert color.dtype == tf.uint8
    np.testing.assert_array_equal(color, np.repeat(gray, 3, -1))
    # ITU-R BT.601: 0.299, 0.587 and 0.114 of red, green and blue.
    red = tf.constant([[[[200, 0, 0, 7]]]], tf.uint8)
    assert ood.fit(red, (1, 1, 1)).numpy().item() in (59, 60)
    np.testing.assert_array_equal(ood.fit(red, (1, 1, 3)), red[..., :3])
    assert ood.fit(gray, (2, 2, 1)) is gray


def test_images_in_another_size():
    image = tf.constant([[0, 100], [100, 200]], tf.uint8)[None, :, :, None]
    assert ood.fit(image, (1, 1, 1)).numpy().item() == 100
    large = ood.fit(image, (4, 4, 3))
    assert large.shape == (1, 4, 4, 3) and large.numpy().min() == 0 and large.numpy().max() == 200


@pytest.fixture
def inside():
    return data.load("digits")


def test_sets_come_in_the_size_of_the_model(inside, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(20):
            image = np.full((6, 6, 3), number, np.uint8)
            (tmp_path / kind / f"{number:02}.png").write_bytes(tf.io.encode_png(image).numpy())
    name = f"folder:{tmp_path}"
    found = evaluation.outside_data([name, "synthetic"], inside)
    assert list(found) == [name, "synthetic"]
    for other in found.values():
        images, _, weights = next(iter(other.test(300)))
        assert images.shape == (300, 8, 8, 1) and images.dtype == tf.uint8
        assert weights.numpy().sum() == other.sizes["test"]
    large = dataclasses.replace(inside, input_shape=(12, 12, 3), name="large")
    images = next(iter(evaluation.outside_data(["digits"], large)["digits"].test(5)))[0]
    assert images.shape == (5, 12, 12, 3)


def test_scores_of_a_model_that_knows_one_side(inside):
    """Logits are (brightness, 0): brighter images are more familiar."""
    other = data.load("synthetic", image_size=8)
    other = dataclasses.replace(
        other, test=lambda size: other_test(size).map(lambda x, y, w: (x[..., :1] * 0, y, w))
    )
    other_test = data.load("synthetic", image_size=8).test

    def logits(images):
        light = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2, 3))
        return tf.stack([light, tf.zeros_like(light)], 1)

    own = evaluation.predict(None, inside.test(360), compiled=logits)

    def detect(compiled):
        return evaluation.detect(evaluation.predict_others(compiled, {"black": other}, 100), own)

    found = detect(logits)
    assert found["examples"] == 360
    black = found["against"]["black"]
    assert black["examples"] == other.sizes["test"] and black["non_finite"] == 0
    for score in ("max_softmax", "energy", "max_logit"):
        assert black[score]["auroc"] == 1 and black[score]["fpr_at_95_tpr"] == 0

    def fails(images):
        return logits(images) * np.nan

    black = detect(fails)["against"]["black"]
    assert black["non_finite"] == other.sizes["test"] and np.isnan(black["energy"]["auroc"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "such as --ood=mnist"),
        (["digits"], "in distribution. Received: digits"),
        (["synthetic", "synthetic"], "each data set out of distribution once"),
        (["folder:/no/such"], "/no/such"),
    ],
)
def test_mistakes(names, said, inside):
    with pytest.raises(errors.UserError, match=said):
        evaluation.outside_data(names, inside)


def test_channels_that_have_no_meaning():
    ood.check_channels("x", 7, 7)
    for have, want in [(7, 3), (3, 7), (1, 4)]:
        with pytest.raises(errors.UserError, match=f"of {want} channels.*Received: x, of {have}"):
            ood.check_channels("x", have, want)
