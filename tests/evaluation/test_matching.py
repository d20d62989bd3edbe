"""The data that suit a model, and what is refused."""

import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import data, errors, evaluation

DIGITS = [str(number) for number in range(10)]


def subject(shape=(8, 8, 1), classes=10, **run):
    inputs = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(inputs) if len(shape) == 3 else inputs
    model = keras.Model(inputs, layers.Dense(classes)(x))
    return evaluation.Subject(model, pathlib.Path("m.keras"), "", run, "as they are")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 20 gray images of 6x6."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(20):
            image = np.full((6, 6, 1), number, np.uint8)
            (root / name / f"{number:02}.png").write_bytes(tf.io.encode_png(image).numpy())
    return f"folder:{root}"


def run_of(dataset, names, **config):
    return {"config": {"dataset": dataset, **config}, "data": {"class_names": names}}


def test_the_runs_own_data_as_it_had_them():
    run = run_of("digits", DIGITS, validation_fraction=0.3, data_dir="d", manual_dir="m")
    found, options = evaluation.data_for(subject(**run))
    own = data.load("digits", validation_fraction=0.3)
    assert found.sizes == own.sizes and found.name == "digits"
    assert options == {"data_dir": "d", "manual_dir": "m", "image_size": None}
    _, options = evaluation.data_for(subject(**run), data_dir="other")
    assert options["data_dir"] == "other"


@pytest.mark.parametrize("shape", [(6, 6, 1), (9, 9, 1), (None, None, 1)])
def test_images_are_resized_where_the_model_wants(photos, shape):
    found, options = evaluation.data_for(subject(shape, 2), photos)
    side = shape[0] or 6
    assert found.input_shape == (side, side, 1)
    assert options["image_size"] == (9 if side == 9 else None)


@pytest.mark.parametrize(
    ("model", "dataset", "said"),
    [
        (lambda: subject(), None, "Expected --dataset"),
        (lambda: subject(classes=7), "digits", "of the 10 classes of digits. Received.* of 7"),
        (lambda: subject((8, 8, 3)), "digits", "images of 8x8x3.*Received: digits, of 8x8x1"),
        (lambda: subject((8, 6, 1)), "digits", "square images"),
        (lambda: subject((64,)), "digits", "Expected images of 64"),
        (lambda: subject((28, 28, 1)), "digits", "since digits are 8x8"),
        (lambda: subject(), "no_such_set", "Expected digits"),
    ],
)
def test_data_that_do_not_suit(model, dataset, said):
    with pytest.raises(errors.UserError, match=said):
        evaluation.data_for(model(), dataset)


def test_other_classes_than_in_training(photos, capsys):
    same = run_of("x", ["cat", "dog"])
    evaluation.data_for(subject((6, 6, 1), 2, **same), photos)
    for names in (["dog", "cat"], ["cat", "horse"], ["cat"]):
        with pytest.raises(errors.UserError, match="trained on, in their order"):
            evaluation.data_for(subject((6, 6, 1), 2, **run_of("x", names)), photos)
    assert capsys.readouterr().out == ""
    evaluation.data_for(subject((6, 6, 1), 2, **run_of("x", ["0", "1"])), photos)
    evaluation.data_for(subject(**run_of("x", list("abcdefghij"))), "digits")
    assert capsys.readouterr().out.count("order of training") == 2


def test_data_that_changed_since_training_are_said(photos, tmp_path, capsys):
    own = tmp_path / "photos"
    shutil.copytree(photos.removeprefix("folder:"), own)
    name = f"folder:{own}"
    run = run_of(name, ["cat", "dog"])
    run["data"]["origin"] = data.load(name).origin
    trained = subject((6, 6, 1), 2, **run)
    evaluation.data_for(trained)
    shutil.copy(own / "cat" / "00.png", own / "cat" / "99.png")
    evaluation.data_for(trained, photos)
    assert capsys.readouterr().out == ""
    evaluation.data_for(trained)
    said = capsys.readouterr().out
    assert said.startswith(f"note: {name} has changed since m.keras was trained: it was 40 files")
    assert "and is 41 files" in said and said.count("\n") == 1


def test_data_without_labels_or_without_the_split(photos, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(errors.UserError, match="one folder of images a class"):
        evaluation.data_for(subject(), f"folder:{tmp_path / 'images'}")
    with pytest.raises(errors.UserError, match="image classification"):
        evaluation.data_for(subject(), "ag_news_subset", data_dir=str(tmp_path))
    run = run_of("digits", DIGITS, validation_fraction=0.0)
    with pytest.raises(errors.UserError, match="with validation images"):
        evaluation.data_for(subject(**run), split="validation")
