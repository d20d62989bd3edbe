"""Folders of images and masks: values as they are stored, what is held out, mistakes."""

import re
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tfmp import data
from tfmp.data import crops, masks

RNG = np.random.default_rng(0)
SIZE = (6, 8)
# Of a palette in which no index is its own gray.
PALETTE = [255 - i // 3 for i in range(768)]


def write(place, name, mask, *, mode="L", suffix="png", image_size=None):
    """An image of noise and its mask."""
    for folder in ("images", "masks"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    height, width = image_size or mask.shape[:2]
    pixels = RNG.integers(256, size=(height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(place / "images" / f"{name}.png")
    image = PIL.Image.fromarray(mask).convert("L") if mode == "L" else PIL.Image.fromarray(mask)
    if mode == "P":
        image.putpalette(PALETTE)
    if mode == "1":
        image = PIL.Image.fromarray(mask.astype(bool))
    image.save(place / "masks" / f"{name}.{suffix}")


def drawn(values=(0, 1, 2, 255), size=SIZE):
    mask = RNG.choice(np.array(values, np.uint8), size=size)
    mask.flat[: len(values)] = values
    return mask


def folder(place, count=20, values=(0, 1, 2, 255), **settings):
    """Writes so many masks; returns them by name."""
    found = {f"im{i}": drawn(values) for i in range(count)}
    for name, mask in found.items():
        write(place, name, mask, **settings)
    return found


def read(loaded, part):
    """Images and masks of a part, without padding."""
    images, labels, weights = next(getattr(loaded, part)(64).as_numpy_iterator())
    kept = weights > 0
    return images[kept], labels[kept]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("P", "tiff"), ("L", "bmp")]
)
def test_values_are_classes_whatever_the_palette_and_255_is_none(tmp_path, mode, suffix):
    written = folder(tmp_path, mode=mode, suffix=suffix)
    loaded = masks.load(f"folder:{tmp_path}")
    assert loaded.input_shape == (*SIZE, 3) and loaded.class_names == ("0", "1", "2")
    assert loaded.sizes == {"train": 16, "validation": 2, "test": 2}
    assert loaded.notes == ("pixels of 255 are of no class, and don't count",)
    found = [read(loaded, part) for part in ("validation", "test")]
    images, labels = next(loaded.train(16, seed=3).as_numpy_iterator())
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    stored = {
        np.asarray(PIL.Image.open(tmp_path / "images" / f"{name}.png")).tobytes(): mask
        for name, mask in written.items()
    }
    images, labels = map(np.concatenate, zip(*found, (images, labels), strict=True))
    assert len(images) == 20
    for image, label in zip(images, labels, strict=True):
        mask = stored.pop(image.tobytes()).astype(np.int32)
        np.testing.assert_array_equal(label, np.where(mask == 255, -1, mask))


@pytest.mark.parametrize(("mode", "values"), [("L", (0, 255)), ("1", (0, 1))])
def test_masks_of_two_values(tmp_path, mode, values):
    written = folder(tmp_path, values=values, mode=mode)
    loaded = masks.load(f"folder:{tmp_path}", validation_fraction=0.0)
    assert loaded.class_names == ("0", "1") and loaded.validation is None
    _, labels = next(loaded.train(18, seed=0).as_numpy_iterator())
    assert set(np.unique(labels)) == {0, 1}
    share = np.mean([mask > 0 for mask in written.values()])
    assert labels.mean() == pytest.approx(share, abs=0.1)
    assert bool(loaded.notes) == (255 in values)


def test_parts_names_and_images_of_several_sizes(tmp_path):
    mask = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 16, 0), 16, 1)
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for i in range(count):
            write(tmp_path / part, f"x{i}", mask[: 32 - 16 * (i % 2)])
    (tmp_path / "classes.txt").write_text("ground\ntree\n\nroof\ncar\n")
    loaded = masks.load(f"folder:{tmp_path}", image_size=8)
    assert loaded.class_names == ("ground", "tree", "roof", "car")
    assert loaded.sizes == {"train": 4, "validation": 2, "test": 3}
    assert "without a test example: 'car'" in loaded.notes[1]
    images, labels = read(loaded, "test")
    assert images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(labels[0][[0, 0, 7, 7], [0, 7, 0, 7]], [0, 1, 2, -1])
    np.testing.assert_array_equal(labels[1][[0, 0, 7, 7], [0, 7, 0, 7]], [0, 1, 0, 1])
    assert masks.load(f"folder:{tmp_path}").input_shape == (224, 224, 3)


def test_the_same_files_are_the_same_data(tmp_path):
    folder(tmp_path / "a")
    first = masks.load(f"folder:{tmp_path / 'a'}")
    (tmp_path / "a").rename(tmp_path / "b")
    again = masks.load(f"folder:{tmp_path / 'b'}")
    assert first.origin == again.origin and "40 files" in first.origin
    np.testing.assert_array_equal(
        *(
            next(x.as_numpy_iterator())[1]
            for x in (again.train(4, seed=1, start_step=5), again.train(4, seed=1, start_step=5))
        )
    )
    write(tmp_path / "b", "one_more", drawn())
    assert masks.load(f"folder:{tmp_path / 'b'}").origin != first.origin


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.unlink(), "No such file or directory"),
        (lambda file: file.write_bytes(file.read_bytes()[:60]), ".*"),
    ],
)
def test_a_mask_that_is_gone_or_cut_during_training_is_one_line(tmp_path, harm, said):
    folder(tmp_path, 6)
    loaded = masks.load(f"folder:{tmp_path}")
    for file in (tmp_path / "masks").iterdir():
        harm(file)
    with pytest.raises(tf.errors.OpError) as raised:
        list(loaded.test(1))
    message = crops.damage(raised.value)
    assert message is not None and "\n" not in message
    assert re.fullmatch(rf"Decode: {tmp_path}/masks/im\d\.png: {said}", message)


def without_masks(place):
    (place / "masks").rename(place / "labels")


def one_mask_less(place):
    (place / "masks" / "im3.png").unlink()


def one_image_less(place):
    (place / "images" / "im3.png").unlink()


def two_of_a_name(place):
    write(place, "im3", drawn(), suffix="bmp")


def as_jpeg(place):
    two_of_a_name(place)
    (place / "masks" / "im3.bmp").unlink()
    PIL.Image.fromarray(drawn()).save(place / "masks" / "im3.png", format="JPEG")


def in_color(place):
    write(place, "im3", np.zeros((*SIZE, 3), np.uint8), mode="RGB")


def of_another_size(place):
    write(place, "im3", drawn(), image_size=(8, 8))


def with_a_gap(place):
    write(place, "im3", drawn((0, 7)))


def beyond_the_names(place):
    (place / "classes.txt").write_text("a\nb\n")


def no_mask(place):
    (place / "masks" / "im3.png").write_text("no image")


def cut(place):
    whole = (place / "masks" / "im3.png").read_bytes()
    (place / "masks" / "im3.png").write_bytes(whole[: len(whole) // 2])


def alike_names(place):
    (place / "classes.txt").write_text("a\na\nb\n")


def of_two_bits(place):
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 2, 0, 0, 0, 0)
    rows = (b"\0" + b"\3" * (SIZE[1] // 4)) * SIZE[0]
    found = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        end = struct.pack(">I", zlib.crc32(kind + content))
        found += struct.pack(">I", len(content)) + kind + content + end
    (place / "masks" / "im3.png").write_bytes(found)


def white_is_zero(place):
    (place / "masks" / "im3.png").unlink()
    image = PIL.Image.fromarray(drawn())
    image.save(place / "masks" / "im3.tiff", tiffinfo={262: 0})


def names_in_another_encoding(place):
    (place / "classes.txt").write_text("sol\nb\u00e2timent\ntoit\n", encoding="latin-1")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_masks, "Expected masks/ beside"),
        (one_mask_less, r"none for .*images/im3\.png"),
        (one_image_less, r"none for .*masks/im3\.png"),
        (two_of_a_name, r"one file a name.*im3\.bmp and .*im3\.png"),
        (as_jpeg, "JPEG does not keep values; save it as PNG"),
        (in_color, "its mode is RGB; save it in gray"),
        (of_another_size, r"of 8x8 pixels, as .*im3\.png.*of 6x8"),
        (with_a_gap, "without a gap.*masks with 7 and none with 3"),
        (beyond_the_names, "below 2, the number of classes.*Received: 2 in"),
        (no_mask, r"mask that can be read.*im3\.png"),
        (cut, r"mask that can be read.*im3\.png"),
        (alike_names, "by names. Received: a, a, b"),
        (of_two_bits, r"im3\.png: its grays are not stored as 0 to 255"),
        (white_is_zero, r"im3\.tiff: its grays are not stored as 0 to 255"),
        (names_in_another_encoding, r"in UTF-8. Received: .*classes\.txt: 'utf-8' codec"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(tmp_path, damage, said):
    folder(tmp_path, 6)
    damage(tmp_path)
    with pytest.raises(data.DataError, match=said) as raised:
        masks.load(f"folder:{tmp_path}")
    assert "\n" not in str(raised.value)


def test_other_mistakes(tmp_path):
    with pytest.raises(data.DataError, match="which is no folder"):
        masks.load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(data.DataError, match="Expected images/ and masks/ in"):
        masks.load(f"folder:{tmp_path}")
    with pytest.raises(data.DataError, match=r"or folder:PATH\. Received: 'folder:'"):
        masks.load("folder:")
    folder(tmp_path, 3, values=(0,))
    with pytest.raises(data.DataError, match="2 classes or more"):
        masks.load(f"folder:{tmp_path}")
