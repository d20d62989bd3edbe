"""`folder:PATH`: one's own images, in one folder a class.

PATH holds either the class folders, of which a tenth is held out for the test set, or `train/`
and `test/` (or `val/`, `validation/`) with the class folders inside. The images (PNG, JPEG, BMP,
GIF) lie directly in their class folder, without folders below it; names that begin with a dot are
passed over. Of each class the files held out are chosen by a hash of their names and the seed, so
that neither the order of the files nor the place of the folder matters.

Images are taken as they are stored: a camera's note of how it was held (EXIF) is not looked at.

Every file's header and last bytes are read at once (about 0.1 ms a file on one core), so that a bad
file is named before training and not in its third hour. Damage in the middle of a file isn't seen
there: it shows when the image is decoded, by an error that doesn't name the file.
"""

import hashlib
import os
from concurrent import futures
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmp.data import crops, headers, memory, pipeline
from tfmp.data.base import Data, DataError, Options

VALIDATION_NAMES = ("validation", "val")


def load(path: str, options: Options) -> Data:
    """Loads a folder of images.

    Raises:
        DataError: If the folder isn't laid out as above, has fewer than two classes, or holds
            files that can't be read or whose channels differ.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"Expected a folder of images. Received: {path!r}, which is no folder.")
    train, validation, test = _parts(root)
    classes = _class_names(train)
    if len(classes) < 2:
        raise DataError(
            f"Expected at least 2 classes, one folder each. Received: only {classes[0]!r} in "
            f"{train}."
        )
    files = {"train": _files(train, classes)}
    for part, place in (("validation", validation), ("test", test)):
        if place is not None:
            files[part] = _files(place, classes)
    paths = [path for part in files.values() for path in part[0]]
    found = headers_of(paths)
    shape, alike = shape_of(paths, found, options.image_size)
    if test is None:
        files["train"], files["test"] = _split(files["train"], memory.TEST_FRACTION, options.seed)
    if validation is None:
        files["train"], files["validation"] = _split(
            files["train"], options.validation_fraction, options.seed + 1
        )
    notes = pipeline.check_test(f"folder:{path}", files["test"][1], tuple(classes))
    sizes = {part: len(files[part][0]) for part in ("train", "validation", "test")}
    training_crop, evaluation_crop = crops.pair(shape, alike)
    return Data(
        name=f"folder:{path}",
        input_shape=shape,
        class_names=tuple(classes),
        sizes=sizes,
        train=_train(*files["train"], training_crop),
        validation=_evaluation(*files["validation"], evaluation_crop),
        test=_evaluation(*files["test"], evaluation_crop),
        augmentation="flip" if crops.is_large(shape) else "crop",
        read_by="file",
        origin=origin_of(root, paths, [header.size for header in found]),
        notes=notes,
    )


Files = tuple[list[str], np.ndarray]


def _train(paths, labels, crop):
    paths, labels = names_on_host(paths), pipeline.on_host(labels)

    def decode(chosen, seed):
        return crop(tf.io.read_file(paths[chosen]), seed), labels[chosen]

    return pipeline.numbered_train(decode, int(labels.shape[0]))


def _evaluation(paths, labels, crop):
    paths, labels = names_on_host(paths), pipeline.on_host(labels)

    def decode(position):
        return crop(tf.io.read_file(paths[position])), labels[position]

    return pipeline.numbered_evaluation(decode, int(labels.shape[0]))


def names_on_host(paths) -> tf.Tensor:
    """Paths as a tensor of strings in the host's memory."""
    with tf.device("/CPU:0"):
        return tf.constant([*map(os.fsencode, paths)], tf.string)


def _parts(root: Path) -> tuple[Path, Path | None, Path | None]:
    """Folders of the training, validation and test set; None for what is held out of train."""
    train = root / "train"
    if not (train.is_dir() and _folders(train)):  # it may be a class of that name
        return root, None, None
    return train, *held_parts(root)


def held_parts(root: Path) -> tuple[Path | None, Path | None]:
    """Folders of the validation and the test set, which a single one of them is."""
    test = root / "test"
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    return (validation, test) if test.is_dir() else (None, validation)


def _class_names(place: Path) -> list[str]:
    names = _folders(place)
    if not names:
        raise DataError(
            f"Expected one folder of images a class in {place}. Received: no folder at all. Move "
            "the images into folders named after their classes."
        )
    return names


def _folders(place: Path) -> list[str]:
    """Names of the folders in a place, in order, but for those that begin with a dot."""
    entries = [entry for entry in place.iterdir() if not entry.name.startswith(".")]
    return sorted(entry.name for entry in entries if entry.is_dir())


def _files(place: Path, classes: list[str]) -> Files:
    """Paths of the images in a part's class folders, and their labels."""
    names = _class_names(place)
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(
            f"Expected in {place} only classes that the training set has. Received: "
            f"{unknown[0]!r}. Add it to the training set or take it out here."
        )
    paths, labels = [], []
    for name in names:
        found = listed(place / name)
        paths += found
        labels += [classes.index(name)] * len(found)
    return paths, np.array(labels, np.int32)


def listed(place: Path) -> list[str]:
    """Paths of the files in a folder, in order, but for those that begin with a dot.

    Raises:
        DataError: There is none, or a folder among them.
    """
    with os.scandir(place) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.path)
    if strange := [entry.path for entry in shown if not entry.is_file()]:
        raise DataError(
            f"Expected images directly in {place}, and no folders or broken links. Received: "
            f"{strange[0]}. Move its images up, or take it out."
        )
    if not shown:
        raise DataError(
            f"Expected images directly in {place}. Received: no file there. Fill the folder or "
            "remove it."
        )
    return [entry.path for entry in shown]


def headers_of(paths: list[str]) -> list[headers.Header]:
    """Headers of image files.

    Raises:
        DataError: One can't be read.
    """
    with futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(_header, paths, chunksize=256))


def origin_of(root: Path, paths: list[str], marks: list) -> str:
    """The number of files, and a checksum of their names and sizes.

    What is in images isn't read: another one of the same name and size isn't seen.

    Args:
        root: Path of the folder.
        paths: Of its files.
        marks: What tells each file from another: an image's size in bytes.
    """
    digest = hashlib.sha256()
    for path, mark in zip(paths, marks, strict=True):
        name = path.removeprefix(f"{root}{os.sep}")
        digest.update(f"{name}\0{mark}\n".encode(errors="surrogateescape"))
    return f"{len(paths):,} files, of names and sizes with SHA-256 {digest.hexdigest()}"


def shape_of(
    paths: list[str], found: list[headers.Header], image_size: int | None
) -> tuple[tuple[int, int, int], bool]:
    """Shape that the images will have, and whether they have that size already.

    Raises:
        DataError: Their channels differ.
    """
    first_with: dict[int, str] = {}
    for header, path in zip(found, paths, strict=True):
        first_with.setdefault(header.channels, path)
    if len(first_with) > 1:
        examples = " and ".join(f"{path} has {n}" for n, path in sorted(first_with.items()))
        raise DataError(
            "Expected images of one number of channels (1 gray, 3 color, 4 color and alpha). "
            f"Received: {examples}. Convert them to one kind."
        )
    (channels,) = first_with
    if channels == 2:
        raise DataError(
            "Expected gray, color, or color and alpha. Received: gray and alpha in "
            f"{first_with[2]}. Convert the images to gray."
        )
    sizes = {(header.height, header.width) for header in found}
    if image_size is None and len(sizes) == 1:
        (height, width) = sizes.pop()
        return (height, width, channels), True
    size = image_size or crops.DEFAULT_SIZE
    return (size, size, channels), sizes == {(size, size)}


def _header(path: str) -> headers.Header:
    try:
        header = headers.read(path)
        if not header.complete:
            tf.io.decode_image(Path(path).read_bytes(), expand_animations=False)
        return header
    except tf.errors.InvalidArgumentError:
        reason = "it is truncated or damaged"
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise DataError(
        f"Expected an image that can be read. Received: {path}: {reason}. Replace the file or "
        "take it out of the folder."
    )


def _split(files: Files, fraction: float, seed: int) -> tuple[Files, Files]:
    paths, labels = files
    names = [Path(*Path(path).parts[-2:]) for path in paths]
    kept, held = hold_out(names, labels, fraction, seed)
    return ([paths[i] for i in kept], labels[kept]), ([paths[i] for i in held], labels[held])


def hold_out(names, labels, fraction: float, seed: int) -> tuple:
    """`pipeline.hold_out` by a hash of the files' names and the seed, whatever their order."""
    keys = np.array([_hash(f"{seed}/{name}") for name in names])
    return pipeline.hold_out(labels, keys, fraction)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
