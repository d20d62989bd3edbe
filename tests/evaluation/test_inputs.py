"""The same images in other dtypes and ranges, to models whose answer a person knows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import data, errors, evaluation
from tfmp.evaluation import inputs


def tried(model, images, labels):
    """What becomes of images in one batch."""

    def dataset():
        weights = np.ones(len(labels), "float32")
        return tf.data.Dataset.from_tensors((images, np.asarray(labels, "int32"), weights))

    compiled = evaluation.forward(model)
    return evaluation.vary_inputs(
        compiled, dataset, evaluation.predict(model, dataset(), compiled=compiled)
    )


def light_or_dark(threshold=100.0, dtype="float32"):
    """Class 1 where the mean of the pixels is above a threshold."""
    seen = keras.Input((2, 2, 1))
    x = layers.GlobalAveragePooling2D(dtype=dtype)(seen)
    model = keras.Model(seen, layers.Dense(2, dtype=dtype)(x))
    model.set_weights([np.array([[0.0, 0.01]]), np.array([0.0, -0.01 * threshold])])
    return model


@pytest.fixture
def gray():
    """40 images of 80, 20 of 120: dark and light."""
    labels = np.repeat([0, 1], [40, 20])
    images = np.where(labels == 1, 120, 80).astype("uint8")[:, None, None, None]
    return np.broadcast_to(images, (60, 2, 2, 1)), labels


def test_each_verdict(gray):
    found = tried(light_or_dark(), *gray)
    ways = {name: found[name] for kind in inputs.INPUTS.values() for name in kind}
    assert list(found) == list(ways)
    dtypes = [found[name] for name in inputs.INPUTS["dtype"]]
    assert {values["verdict"] for values in dtypes} == {"same"}
    assert {values["relative_logit_difference"] for values in dtypes} == {0}
    # As 0-1 all are dark, so the 20 light ones flip.
    assert found["float32 0-1"]["verdict"] == "worse" and found["float32 0-1"]["flips"] == 20
    assert found["float32 0-1"]["accuracy"] == pytest.approx(40 / 60)
    assert found["float32 0-1"]["accuracy_change"] == pytest.approx(-20 / 60)
    # 80 is 20560 of 65535: all are light.
    assert found["uint16 0-65535"]["verdict"] == "breaks"
    assert found["uint16 0-65535"]["accuracy"] == pytest.approx(20 / 60)
    # 135 and 175, inverted, are both light; 96 and 136 are still told apart.
    assert found["inverted 255-0"]["accuracy"] == pytest.approx(20 / 60)
    assert found["brightness +16"]["verdict"] == "changes" and not found["brightness +16"]["flips"]
    # 127.5 - 47.5 x 0.5 = 103.75, and 123.75.
    assert found["contrast x0.5"]["accuracy"] == pytest.approx(20 / 60)


def test_a_camera_has_no_more_than_eight_bits():
    image = tf.constant([0, 100, 250], tf.uint8)
    ways = inputs.INPUTS["shift"] | inputs.INPUTS["range"]
    by_hand = {
        "brightness +16": [16, 116, 255],
        "brightness -64": [0, 36, 186],
        "contrast x2": [0, 72, 255],
        "inverted 255-0": [255, 155, 5],
        "uint16 0-65535": [0, 25700, 64250],
        "float32 -128-127": [-128, -28, 122],
    }
    for name, values in by_hand.items():
        assert ways[name](image).numpy().tolist() == values, name
    np.testing.assert_allclose(ways["float32 -1-1"](image), [-1, -0.21568627, 0.96078431], 1e-5)


def test_half_precision_in_front_overflows(gray):
    images, labels = gray
    bright = np.where(labels == 1, 255, 0).astype("uint8")[:, None, None, None]
    model = light_or_dark(dtype="float16")
    found = tried(model, np.broadcast_to(bright, images.shape), labels)
    assert found["uint16 0-65535"]["verdict"] == "breaks"
    assert found["uint16 0-65535"]["non_finite"] == 20


def test_what_a_model_refuses(gray):
    class Bytes(keras.Layer):
        def call(self, x):
            if x.dtype != tf.uint8:
                raise ValueError(f"bytes, please\nReceived: {x.dtype}")
            return tf.cast(x, tf.float32)[:, 0, 0, :1] * [[-0.01, 0.01]]

    found = tried(Bytes(autocast=False), *gray)
    assert found["uint8 0-255"]["verdict"] == "same"
    assert found["float32 0-1"]["verdict"] == "refused"
    assert "bytes, please" in found["float32 0-1"]["error"]
    assert "\n" not in found["float32 0-1"]["error"]


def test_memory_that_runs_out_is_no_refusal():
    test = data.load("digits").test
    own = evaluation.Predictions(np.eye(2, dtype="float32"), np.arange(2))

    def full(_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    with pytest.raises(errors.OutOfMemoryError, match="360 images"):
        evaluation.vary_inputs(full, lambda: test(360), own)
