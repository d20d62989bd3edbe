"""Predictions: all examples, once, in order, in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import data, errors, evaluation, policies


def mean_of_pixels(policy="float32"):
    """Logits (mean, 0) of an image."""
    with policies.scope(policy):
        inputs = keras.Input((8, 8, 1))
        x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
        x = layers.Dense(2, use_bias=False)(x)
    model = keras.Model(inputs, x)
    model.set_weights([np.array([[1.0, 0.0]], "float32")])
    return model


@pytest.mark.parametrize("batch_size", [7, 360, 500])
def test_each_example_once_in_order(batch_size):
    found = evaluation.predict(mean_of_pixels(), data.load("digits").test(batch_size))
    images, labels, _ = next(iter(data.load("digits").test(360)))
    np.testing.assert_array_equal(found.labels, labels)
    means = images.numpy().astype(float).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(found.logits[:, 0], means, rtol=1e-5)
    assert found.logits.dtype == np.float32 and found.labels.dtype == np.int64


@pytest.mark.parametrize("jit_compile", [False, True])
def test_half_precision_gives_float32(jit_compile, monkeypatch, capsys):
    monkeypatch.setattr(evaluation.predictions, "PROGRESS_SECONDS", 0)
    model = mean_of_pixels("mixed_float16")
    test = data.load("digits").test(100)
    found = evaluation.predict(model, test, jit_compile=jit_compile, examples=360)
    assert found.logits.dtype == np.float32
    assert (found.logits == found.logits.astype("float16")).all()
    assert "  360 of 360\n" in capsys.readouterr().out
    exact = evaluation.predict(mean_of_pixels(), test)
    assert "  360\n" in capsys.readouterr().out
    np.testing.assert_allclose(found.logits, exact.logits, atol=2e-3)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_probabilities_are_refused(policy):
    with policies.scope(policy):
        model = mean_of_pixels(policy)
        model = keras.Model(model.inputs[0], keras.ops.softmax(model.outputs[0]))
    with pytest.raises(errors.UserError, match="outputs are probabilities"):
        evaluation.predict(model, data.load("digits").test(360))


def test_a_file_of_predictions(tmp_path):
    found = evaluation.Predictions(np.eye(3, dtype="float32"), np.arange(3))
    found.save(tmp_path / "p.npz", groups=np.array(["a", "b", "c"]))
    with np.load(tmp_path / "p.npz") as read:
        np.testing.assert_array_equal(read["logits"], found.logits)
        assert read["labels"].tolist() == [0, 1, 2] and read["groups"].tolist() == ["a", "b", "c"]
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def test_errors_that_a_user_can_mend():
    def fails_with(error):
        def call(*_, **__):
            raise error

        return call

    test = data.load("digits").test(100)
    memory = fails_with(tf.errors.ResourceExhaustedError(None, None, "OOM"))
    with pytest.raises(errors.OutOfMemoryError, match=r"100 images at once. Lower --batch_size"):
        evaluation.predict(memory, test)
    damaged = fails_with(tf.errors.InvalidArgumentError(None, None, "DecodePng failed\nmore"))
    with pytest.raises(
        errors.UserError, match=r"image is damaged or gone: DecodePng failed. Remove"
    ):
        evaluation.predict(damaged, test)
    with pytest.raises(tf.errors.InvalidArgumentError):
        evaluation.predict(fails_with(tf.errors.InvalidArgumentError(None, None, "x")), test)
