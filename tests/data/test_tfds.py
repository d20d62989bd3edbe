"""Data sets of TFDS: a tiny one made here, and Fashion-MNIST where its files are at hand."""

import os
import pathlib
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import data
from tfmp.data import memory, prepare

TEST_DATA = pathlib.Path(
    os.environ.get("TFMP_TEST_DATA") or pathlib.Path(tfmp.__file__).parents[2] / "shared" / "data"
)
FASHION_FILES = TEST_DATA / "fashion_mnist"
needs_fashion_files = pytest.mark.skipif(
    not FASHION_FILES.is_dir(), reason="Fashion-MNIST's original files are not at hand"
)


def refused(name, match, **options):
    """The message is the one meant, and comes within 5 seconds."""
    started = time.monotonic()
    with pytest.raises(data.DataError, match=match):
        data.load(name, **options)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("image_size", [None, 12], ids=["in memory", "streamed"])
def test_splits(tiny_tfds, image_size):
    loaded = data.load("tiny_images", data_dir=tiny_tfds, image_size=image_size)
    assert loaded.class_names == ("a", "b", "c", "d")
    assert loaded.sizes["train"] + loaded.sizes["validation"] == 50
    assert 3 <= loaded.sizes["validation"] <= 8 and loaded.sizes["test"] == 12
    images, labels, _ = next(iter(loaded.test(12)))
    numbers = images.numpy()[:, 5, 5, 0]
    assert sorted(numbers) == list(range(12))
    np.testing.assert_array_equal(numbers % 4, labels)
    images, labels = next(iter(loaded.train(40, seed=0)))
    np.testing.assert_array_equal(images.numpy()[:, 5, 5, 0] % 4, labels)


@pytest.mark.parametrize("image_size", [None, 12], ids=["in memory", "streamed"])
def test_what_stands_in_for_a_missing_split(tiny_tfds, image_size):
    def load(config):
        return data.load(f"tiny_images/{config}", data_dir=tiny_tfds, image_size=image_size)

    unlabeled = load("unlabeled_test")
    assert unlabeled.sizes["test"] == 12
    assert unlabeled.sizes["train"] + unlabeled.sizes["validation"] == 50
    assert (next(iter(unlabeled.test(12)))[1].numpy() >= 0).all()
    alone = load("train_alone")
    assert sum(alone.sizes.values()) == 50 and min(alone.sizes.values()) >= 3
    assert alone.origin == "tiny_images/train_alone/1.0.0"


def test_files_of_too_few_records_leave_no_test_image(tiny_tfds, monkeypatch):
    monkeypatch.setattr(memory, "TEST_FRACTION", 0.01)
    refused("tiny_images/train_alone", "of 50 in 3 files", data_dir=tiny_tfds, image_size=12)


@pytest.mark.parametrize("config", ["", "/unlabeled_test"])
@pytest.mark.parametrize("image_size", [None, 12], ids=["in memory", "streamed"])
def test_features_come_in_the_order_of_the_test_images(tiny_tfds, image_size, config):
    name, options = f"tiny_images{config}", {"data_dir": tiny_tfds, "image_size": image_size}
    test = data.load(name, **options).test(5)
    numbers = np.concatenate([images[w > 0][:, 5, 5, 0] for images, _, w in test])
    assert data.test_feature(name, "number", **options) == [str(n) for n in numbers]
    assert data.test_feature(name, "writer", **options) == [f"writer {n // 6}" for n in numbers]
    assert data.test_feature(name, "label", **options) == ["abcd"[n % 4] for n in numbers]


def test_features_that_are_not_there(tiny_tfds):
    with pytest.raises(data.DataError, match="out of label, number, writer"):
        data.test_feature("tiny_images", "score", data_dir=tiny_tfds)
    with pytest.raises(data.DataError, match=r"labeled test split.*Use a table"):
        data.test_feature("tiny_images/train_alone", "label", data_dir=tiny_tfds)
    for name in ("digits", "folder:photos"):
        with pytest.raises(data.DataError, match=r"data set of TFDS.*FILE\.csv:COLUMN"):
            data.test_feature(name, "label")


def test_no_validation_set(tiny_tfds):
    for image_size in (None, 12):
        loaded = data.load(
            "tiny_images", data_dir=tiny_tfds, image_size=image_size, validation_fraction=0
        )
        assert loaded.validation is None and loaded.sizes["train"] == 50


def test_streamed_large_images_are_cropped_at_random(tiny_tfds):
    loaded = data.load("tiny_images", data_dir=tiny_tfds, image_size=72)
    assert loaded.augmentation == "flip" and loaded.input_shape == (72, 72, 1)
    images, labels = next(iter(loaded.train(8, seed=0)))
    np.testing.assert_array_equal(images.numpy()[:, 0, 0, 0] % 4, labels)


@pytest.mark.parametrize("name", ["cifra10", "fashion-mnist", "digit"])
def test_unknown_names_get_near_ones(name):
    near = {"cifra10": "cifar10", "fashion-mnist": "fashion_mnist", "digit": "digits"}[name]
    refused(name, f"Did you mean.*{near}")


@pytest.mark.parametrize("name", ["", "no_such_thing_at_all", "huggingface:mnist", "cifar10:9.9.9"])
def test_names_that_lead_nowhere(name, tmp_path):
    refused(name, "Expected|can't open", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["ag_news_subset", "voc", "div2k"])
def test_sets_of_something_else(name, tmp_path):
    refused(name, "image classification.*Received", data_dir=str(tmp_path))


def test_without_preparation_and_network(tmp_path):
    refused("cifar10", "no network.*--data_dir.*--manual_dir", data_dir=str(tmp_path))
    refused("imagenet2012", "fetch its files yourself.*--manual_dir", data_dir=str(tmp_path))


def test_manual_dir_without_the_files(tmp_path):
    absent = str(tmp_path / "absent")
    refused("fashion_mnist", "Expected a folder", data_dir=str(tmp_path), manual_dir=absent)
    refused(
        "fashion_mnist",
        "without t10k-images-idx3-ubyte.gz",
        data_dir=str(tmp_path / "data"),
        manual_dir=str(tmp_path),
    )


@needs_fashion_files
@pytest.mark.parametrize("damage", ["shorter", "changed", "one missing"])
def test_manual_dir_with_damaged_files(tmp_path, damage):
    shutil.copytree(FASHION_FILES, tmp_path / "files", copy_function=shutil.copyfile)
    file = tmp_path / "files" / "t10k-labels-idx1-ubyte.gz"
    file.parent.chmod(0o755)
    content = file.read_bytes()
    if damage == "one missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + (b"" if damage == "shorter" else b"!"))
    match = {"shorter": "bytes", "changed": "SHA-256", "one missing": "without t10k-labels"}[damage]
    refused(
        "fashion_mnist",
        match,
        data_dir=str(tmp_path / "data"),
        manual_dir=str(tmp_path / "files"),
    )


@pytest.mark.slow
@needs_fashion_files
def test_fashion_mnist_from_its_files(tmp_path):
    loaded = data.load("fashion_mnist", data_dir=str(tmp_path), manual_dir=str(FASHION_FILES))
    assert loaded.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert loaded.class_names[9] == "Ankle boot" and loaded.augmentation == "crop_flip"
    images, labels, _ = next(iter(loaded.test(10_000)))
    assert np.bincount(labels).tolist() == [1000] * 10
    assert tf.reduce_max(images) == 255


def test_the_probe_gives_up_in_time(monkeypatch):
    released = threading.Event()

    def hang(address, timeout):
        released.wait(60)
        raise OSError

    monkeypatch.undo()
    monkeypatch.setattr(prepare.socket, "create_connection", hang)
    monkeypatch.setattr(prepare, "PROBE_SECONDS", 0.1)
    started = time.monotonic()
    assert not prepare.network_reachable("https://host.invalid/file")
    assert time.monotonic() - started < 2
    released.set()
