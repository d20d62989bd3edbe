"""Weights that don't fit a model: the message says why."""

import keras
import pytest
from keras import layers

from tfmp import errors, models


def classifier(classes, depth=1):
    hidden = [layers.Dense(4, name=f"hidden{number}") for number in range(depth)]
    parts = [keras.Input((3,)), *hidden, layers.Dense(classes, name="head")]
    return keras.Sequential(parts, name="tiny")


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5"])
def test_what_does_not_fit_is_named(tmp_path, name):
    file, model = tmp_path / name, classifier(2)
    model.save(file) if name == "a.keras" else model.save_weights(file)
    models.load_weights(classifier(2), file)
    shapes = r"don't fit tiny with 5 outputs: 'head' has weights of the shape \(4, 5\), and in the"
    with pytest.raises(errors.UserError, match=rf"{shapes} file of \(4, 2\)\. Give the model that"):
        models.load_weights(classifier(5), file)
    with pytest.raises(
        errors.UserError, match=r"don't fit tiny with 2 outputs: .*\. Give the model"
    ):
        models.load_weights(classifier(2, depth=2), file)
