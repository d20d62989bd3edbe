"""`folder:PATH` of images with masks: one's own, in a folder of images and one of masks.

PATH holds `images/` and `masks/`, of which a tenth is held out for the test set, or `train/` and
`test/` (or `val/`, `validation/`) with these two inside. A mask is named as its image but for the
suffix, and of the same size. Its values are the classes, from 0 on: a gray or palette image of 8
bits (of a palette the indices count, as in PASCAL VOC), or one of 1 bit, in a format that keeps
values (PNG, BMP, TIFF). Pixels of 255 are of no class: they count neither in the loss nor in
the metrics; where masks hold nothing but 0 and 255, 255 is class 1. `PATH/classes.txt` names the
classes, one a line; without it they are as many as the largest value says.

Every mask is read at once, so that a bad one is named before training. Images are looked at and
held out as those of `tfmp.data.folder`; where they differ in size they are squeezed into squares.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf

from tfmp.data import crops, folder, memory, pipeline
from tfmp.data.base import Data, DataError, Options

# In files, as in PASCAL VOC and Cityscapes; and in labels, which no class has.
VOID = 255
NO_CLASS = -1

NAMES = "classes.txt"
MODES = ("1", "L", "P")
FORMATS = ("PNG", "BMP", "TIFF")  # a GIF's writer may number its palette anew
# What Pillow raises of a file that is gone or damaged, and `_read` of a mask.
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)


def load(path: str, options: Options) -> Data:
    """Loads a folder of images and masks.

    Raises:
        DataError: If the folder isn't laid out as above, or holds files that can't be read, that
            don't fit each other, or whose values are no classes.
    """
    root = Path(path).expanduser()
    places = _places(root)
    files = {part: _pairs(place) for part, place in places.items()}
    pairs = [pair for part in files.values() for pair in part]
    images, masks = map(list, zip(*pairs, strict=True))
    headers = folder.headers_of(images)
    shape, alike = folder.shape_of(images, headers, options.image_size)
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_values, pairs, headers))
    values = {mask: occur for mask, (occur, _) in zip(masks, found, strict=True)}
    names, table, notes = _classes(root, values)
    for part, fraction, seed in (
        ("test", memory.TEST_FRACTION, options.seed),
        ("validation", options.validation_fraction, options.seed + 1),
    ):
        if part not in files:
            files["train"], files[part] = _split(files["train"], fraction, seed)
    tested = np.unique([table[v] for _, mask in files["test"] for v in values[mask]])
    notes += pipeline.check_test(f"folder:{path}", tested, names)
    decode = _decoder(table, shape, alike)
    return Data(
        name=f"folder:{path}",
        input_shape=shape,
        class_names=names,
        sizes={part: len(files[part]) for part in ("train", "validation", "test")},
        train=_train(files["train"], decode),
        validation=_evaluation(files["validation"], decode),
        test=_evaluation(files["test"], decode),
        augmentation="flip",  # which fills nothing up
        read_by="file",
        origin=folder.origin_of(
            root, images + masks, [x.size for x in headers] + [checksum for _, checksum in found]
        ),
        notes=notes,
    )


def _places(root: Path) -> dict[str, Path]:
    """The folder of each part that there is."""
    if not root.is_dir():
        raise DataError(f"Expected a folder. Received: {str(root)!r}, which is no folder.")
    if (root / "images").is_dir():
        return {"train": root}
    validation, test = folder.held_parts(root)
    found = {"train": root / "train", "validation": validation, "test": test}
    places = {part: place for part, place in found.items() if place is not None}
    for place in places.values():
        if not (place / "images").is_dir():
            raise DataError(
                f"Expected images/ and masks/ in {root}, or in its train/ and test/. Received: no "
                f"{place / 'images'}."
            )
    return places


def _pairs(place: Path) -> list[tuple[str, str]]:
    """(image, mask) of each image of a part, by their names."""
    if not (place / "masks").is_dir():
        raise DataError(f"Expected masks/ beside {place / 'images'}. Received: no such folder.")
    images, masks = (_by_stem(place / name) for name in ("images", "masks"))
    for one, other, wanted in ((images, masks, "masks"), (masks, images, "images")):
        if alone := sorted(one.keys() - other.keys()):
            raise DataError(
                f"Expected in {place / wanted} a file of each name in the folder beside it, but "
                f"for the suffix. Received: none for {one[alone[0]]} (and {len(alone) - 1} more)."
            )
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(place: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in folder.listed(place):
        stem = Path(path).stem
        if stem in found:
            raise DataError(f"Expected one file a name. Received: {found[stem]} and {path}.")
        found[stem] = path
    return found


def _read(path: str) -> np.ndarray:
    """A mask's values: uint8 [height, width]."""
    with PIL.Image.open(path) as image:
        if image.format not in FORMATS:
            raise ValueError(f"{image.format} does not keep values; save it as PNG")
        if image.mode not in MODES:
            raise ValueError(
                f"its mode is {image.mode}; save it in gray (L) or with a palette (P), a pixel's "
                "class its value"
            )
        arguments = (image.tile[0].args if image.tile else None) or "L"
        stored = arguments if isinstance(arguments, str) else arguments[0]
        if image.mode == "L" and stored != "L":
            # Pillow spreads grays of 2 bits to 0, 85, 170 and 255, and turns those of TIFF's
            # "white is zero" round.
            raise ValueError("its grays are not stored as 0 to 255, black to white, in 8 bits each")
        return np.asarray(image, np.uint8)


def _read_again(path: bytes) -> np.ndarray:
    """`_read` in a pipeline, whose errors `tfmp.data.crops.damage` knows by their first word."""
    try:
        return _read(os.fsdecode(path))
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Decode: {os.fsdecode(path)}: {reason}") from None


def _values(pair, header) -> tuple[np.ndarray, str]:
    """The values that occur in a mask, which has to be of its image's size, and its checksum."""
    image, mask = pair
    try:
        pixels = _read(mask)
    except UNREADABLE as error:
        raise DataError(f"Expected a mask that can be read. Received: {mask}: {error}.") from error
    if pixels.shape != (header.height, header.width):
        raise DataError(
            f"Expected a mask of {header.height}x{header.width} pixels, as {image}. Received: "
            f"{mask} of {pixels.shape[0]}x{pixels.shape[1]}."
        )
    return np.unique(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()


def _classes(root: Path, values: dict[str, np.ndarray]):
    """Names of the classes, the class of each value (int32 [256]), and notes."""
    occur = np.unique(np.concatenate(list(values.values())))
    table = np.arange(256, dtype=np.int32)
    notes: tuple[str, ...] = ()
    table[VOID] = NO_CLASS
    if occur.tolist() == [0, VOID]:
        table[VOID] = 1
        notes = ("the masks hold 0 and 255 alone: 255 is class 1",)
        occur = np.array([0, 1])
    else:
        if VOID in occur:
            notes = ("pixels of 255 are of no class, and don't count",)
        occur = occur[occur != VOID]
    if (root / NAMES).is_file():
        try:
            text = (root / NAMES).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Expected names of classes in UTF-8. Received: {root / NAMES}: {error}. Save the "
                "file in UTF-8."
            ) from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        names = tuple(map(str, range(int(occur.max(initial=0)) + 1)))
        if missing := sorted(set(range(len(names))) - set(occur.tolist())):
            raise DataError(
                f"Expected classes without a gap, or their names in {root / NAMES}. Received: "
                f"masks with {names[-1]} and none with {missing[0]}."
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"Expected 2 classes or more, by names. Received: {', '.join(names)}.")
    for mask, found in values.items():
        if (beyond := table[found].max(initial=0)) >= len(names):
            raise DataError(
                f"Expected values below {len(names)}, the number of classes in {root / NAMES}, or "
                f"255 where there is none. Received: {beyond} in {mask}."
            )
    return names, table, notes


def _split(pairs, fraction, seed):
    """What is kept, and what is held out."""
    names = [Path(image).name for image, _ in pairs]
    kept, held = folder.hold_out(names, np.zeros(len(pairs)), fraction, seed)
    return [pairs[i] for i in kept], [pairs[i] for i in held]


def _decoder(table: np.ndarray, shape: tuple[int, int, int], alike: bool) -> Callable:
    """`decode(image path, mask path)` -> (uint8 of the shape, int32 [height, width])."""
    height, width, channels = shape

    def decode(image, mask):
        pixels = tf.io.decode_image(tf.io.read_file(image), channels, expand_animations=False)
        # Pillow, since TensorFlow would give the colors of a palette.
        values = tf.numpy_function(_read_again, [mask], tf.uint8, stateful=False)
        values.set_shape([None, None])
        classes = tf.gather(tf.constant(table), tf.cast(values, tf.int32))[..., None]
        if not alike:
            pixels, classes = crops.squeezed(pixels, classes, (height, width))
        return tf.ensure_shape(pixels, shape), tf.ensure_shape(classes[..., 0], (height, width))

    return decode


def _train(pairs, decode):
    images, masks = _constants(pairs)
    return pipeline.numbered_train(lambda i, seed: decode(images[i], masks[i]), len(pairs))


def _evaluation(pairs, decode):
    if not pairs:
        return None
    images, masks = _constants(pairs)
    return pipeline.numbered_evaluation(lambda i: decode(images[i], masks[i]), len(pairs))


def _constants(pairs):
    return map(folder.names_on_host, zip(*pairs, strict=True))
