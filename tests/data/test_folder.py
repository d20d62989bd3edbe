"""`folder:PATH`: layouts, sizes, and every mistake by its message."""

import os
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmp import data
from tfmp.data import headers


def refused(path, match, **options):
    """The message is the one meant, and comes within 5 seconds."""
    started = time.monotonic()
    with pytest.raises(data.DataError, match=match) as error:
        data.load(f"folder:{path}", **options)
    assert time.monotonic() - started < 5
    assert "Received" in str(error.value)


def test_class_folders_are_split_by_class(folder_of_images):
    loaded = data.load(f"folder:{folder_of_images}")
    assert loaded.input_shape == (12, 12, 3) and loaded.augmentation == "crop"
    assert loaded.class_names == ("cat", "dog")
    assert loaded.sizes == {"train": 29, "validation": 4, "test": 4}
    _, labels, _ = next(iter(loaded.test(4)))
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])


def test_a_copy_elsewhere_is_split_alike(tmp_path, folder_of_images, write_images):
    write_images(tmp_path / "cat", 20, seed=1)
    write_images(tmp_path / "dog", 17, seed=2)
    here, there = (data.load(f"folder:{root}") for root in (tmp_path, folder_of_images))
    for part in ("validation", "test"):
        one, other = (next(iter(getattr(loaded, part)(4))) for loaded in (here, there))
        np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train", "test"), {"train": 10, "validation": 2, "test": 12}),
        (("train", "val", "test"), {"train": 12, "validation": 12, "test": 12}),
        (("train", "validation"), {"train": 10, "validation": 2, "test": 12}),
        (("train",), {"train": 8, "validation": 2, "test": 2}),
    ],
)
def test_layouts(tmp_path, write_images, parts, sizes):
    for part in parts:
        for name in ("a", "b"):
            write_images(tmp_path / part / name, 6)
    assert data.load(f"folder:{tmp_path}").sizes == sizes


def test_a_class_called_train(tmp_path, write_images):
    for name in ("car", "train"):
        write_images(tmp_path / name, 6)
    (tmp_path / "train" / ".thumbnails").mkdir()
    assert data.load(f"folder:{tmp_path}").class_names == ("car", "train")


def test_a_checksum_tells_the_files(tmp_path, write_images, folder_of_images, monkeypatch):
    def origin(root):
        return data.load(f"folder:{root}").origin

    write_images(tmp_path / "cat", 20, seed=1)
    write_images(tmp_path / "dog", 17, seed=2)
    known = origin(tmp_path)
    assert known.startswith("37 files, of names and sizes with SHA-256 ")
    assert known == origin(folder_of_images)
    monkeypatch.chdir(tmp_path)
    assert known == origin(".") == origin(f"{tmp_path}/")
    (tmp_path / "dog").rename(tmp_path / "wolf")
    found = {known, origin(tmp_path)}
    write_images(tmp_path / "wolf", 18, seed=2)
    found.add(origin(tmp_path))
    with open(tmp_path / "cat" / "000.png", "ab") as file:
        file.write(b"x")
    found.add(origin(tmp_path))
    assert len(found) == 4


def test_one_image_a_class_leaves_no_test_image(tmp_path, write_images):
    for name in ("a", "b"):
        write_images(tmp_path / name, 1)
    refused(tmp_path, "two examples or more of a class")
    write_images(tmp_path / "b", 6)
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.notes == ("no test figure knows of classes without a test example: 'a'",)


def test_classes_that_a_test_folder_lacks_are_named(tmp_path, write_images):
    for name in ("train/a", "train/b", "test/b"):
        write_images(tmp_path / name, 4)
    assert data.load(f"folder:{tmp_path}").notes[0].endswith("without a test example: 'a'")


def test_labels_follow_the_images(tmp_path, write_images):
    write_images(tmp_path / "a", 6, seed=1)
    write_images(tmp_path / "b", 6, seed=2)
    loaded = data.load(f"folder:{tmp_path}", validation_fraction=0)
    expected = {
        tf.io.decode_image(file.read_bytes()).numpy().tobytes(): label
        for label, name in enumerate("ab")
        for file in (tmp_path / name).iterdir()
    }
    images, labels = next(iter(loaded.train(10, seed=0)))
    assert [expected[image.tobytes()] for image in images.numpy()] == list(labels.numpy())


def test_images_of_several_sizes_and_kinds_become_one(tmp_path, write_images):
    write_images(tmp_path / "a", 4, size=(80, 120), kind="jpg")
    write_images(tmp_path / "b", 4, size=(300, 90))
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.input_shape == (224, 224, 3) and loaded.augmentation == "flip"
    assert next(iter(loaded.train(4, seed=0)))[0].shape == (4, 224, 224, 3)
    small = data.load(f"folder:{tmp_path}", image_size=32)
    assert small.input_shape == (32, 32, 3) and small.augmentation == "crop"
    assert next(iter(small.test(2)))[0].shape == (2, 32, 32, 3)


def test_resizing_keeps_the_aspect_and_cuts_the_center(tmp_path):
    """Left third black, the middle white, right third black: only the middle is left."""
    pixels = np.zeros((20, 60, 1), np.uint8)
    pixels[:, 20:40] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    loaded = data.load(f"folder:{tmp_path}", image_size=10)
    images, _, _ = next(iter(loaded.test(2)))
    assert images.shape == (2, 10, 10, 1) and (images.numpy()[:, :, 1:9] == 255).all()


def test_folders_that_are_none(tmp_path, write_images):
    refused(tmp_path / "absent", "no folder")
    refused(tmp_path, "one folder of images a class")
    write_images(tmp_path / "only", 3)
    refused(tmp_path, "at least 2 classes")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "empty.*no file")


def test_folders_and_broken_links_in_a_class_are_named(tmp_path, write_images):
    for place in ("a", "b", "b/more"):
        write_images(tmp_path / place, 3)
    refused(tmp_path, "images directly in .*b, and no folders.*b/more")
    (tmp_path / "b" / "more").rename(tmp_path / "b" / ".more")
    (tmp_path / "b" / "gone.png").symlink_to("nowhere.png")
    refused(tmp_path, "gone.png")


def test_names_of_files_that_are_no_utf8(tmp_path, write_images):
    for name in ("a", "b"):
        write_images(tmp_path / name, 12)
        file = tmp_path / name / "000.png"
        file.rename(file.with_name(os.fsdecode(b"caf\xe9.png")))
    loaded = data.load(f"folder:{tmp_path}")
    images, _ = next(loaded.train(20, seed=0).as_numpy_iterator())
    assert images.shape == (20, 12, 12, 3)


def test_bmp_files_with_a_palette_are_named(tmp_path):
    picture = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture.new("L", (12, 12)).save(tmp_path / name / "0.bmp")
    refused(tmp_path, "BMP of 8 bits a pixel, where 24 and 32")


def test_a_class_of_test_alone(tmp_path, write_images):
    for place in ("train/a", "train/b", "test/a", "test/c"):
        write_images(tmp_path / place, 2)
    refused(tmp_path, "only classes that the training set has.*'c'")


def test_several_channel_counts_name_one_file_of_each(tmp_path, write_images):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, channels=1)
    refused(tmp_path, "b/000.png has 1 and .*a/000.png has 3")
    write_images(tmp_path / "a", 2, channels=2)
    write_images(tmp_path / "b", 2, channels=2)
    refused(tmp_path, "gray and alpha")


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "empty"),
        (lambda content: b"only text, and no picture at all", "no PNG"),
        (lambda content: content[:10], "header"),
        (lambda content: content[: len(content) * 3 // 4], "truncated"),
    ],
    ids=["empty", "text", "header", "truncated"],
)
def test_bad_files_are_named(tmp_path, write_images, kind, damage, reason):
    for name in ("a", "b"):
        write_images(tmp_path / name, 3, size=(40, 40), kind=kind)
    bad = tmp_path / "b" / f"001.{kind}"
    bad.write_bytes(damage(bad.read_bytes()))
    refused(tmp_path, f"001.{kind}: .*{reason}")


def test_something_after_the_end_of_an_image_does_no_harm(tmp_path, write_images):
    for name in ("a", "b"):
        write_images(tmp_path / name, 3, kind="jpg")
    file = tmp_path / "a" / "000.jpg"
    file.write_bytes(file.read_bytes() + b"\0" * 20)
    assert data.load(f"folder:{tmp_path}").input_shape == (12, 12, 3)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("L", "png", 1), ("LA", "png", 2), ("RGB", "png", 3), ("RGBA", "png", 4), ("P", "png", 3)]
    + [("L", "jpeg", 1), ("RGB", "jpeg", 3), ("CMYK", "jpeg", 3)]
    + [("P", "gif", 3), ("RGB", "bmp", 3)],
)
def test_headers_against_pillow(tmp_path, mode, kind, channels):
    image = pytest.importorskip("PIL.Image").new(mode, (31, 17))
    image.save(tmp_path / "image", kind)
    size = (tmp_path / "image").stat().st_size
    assert headers.read(str(tmp_path / "image")) == headers.Header(17, 31, channels, True, size)
