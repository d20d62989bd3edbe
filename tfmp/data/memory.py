"""Data sets small enough to stay in memory: from arrays to a `Data`."""

import numpy as np

from tfmp.data import pipeline
from tfmp.data.base import Data, Options

TEST_FRACTION = 0.1

Arrays = tuple[np.ndarray, np.ndarray]


def from_arrays(
    name: str,
    *,
    train: Arrays,
    validation: Arrays | None = None,
    test: Arrays | None = None,
    class_names: tuple[str, ...],
    augmentation: str,
    options: Options,
    origin: str = "",
) -> Data:
    """Makes a `Data` of arrays, and holds out of `train` what isn't given.

    Args:
        name: The data set's name.
        train: Images [examples, height, width, channels] uint8 and labels [examples] integers.
        validation: Likewise; None holds out `options.validation_fraction` of each class.
        test: Likewise; None holds out a tenth of each class.
        class_names: One name a class.
        augmentation: An entry of `augment.AUGMENTATIONS`.
        options: What `load` was asked for; its seed decides what is held out.
        origin: As of `Data`.

    Raises:
        DataError: There are too few examples to hold a test example out.
    """
    notes: tuple[str, ...] = ()
    if test is None:
        train, test = split(train, TEST_FRACTION, options.seed)
        notes = pipeline.check_test(name, test[1], class_names)
    if validation is None:
        train, validation = split(train, options.validation_fraction, options.seed + 1)
    parts = {"train": train, "validation": validation, "test": test}
    height, width, channels = train[0].shape[1:]
    return Data(
        name=name,
        input_shape=(height, width, channels),
        class_names=class_names,
        sizes={part: len(images) for part, (images, _) in parts.items()},
        train=pipeline.in_memory_train(*train),
        validation=pipeline.in_memory_evaluation(*validation),
        test=pipeline.in_memory_evaluation(*test),
        augmentation=augmentation,
        origin=origin,
        notes=notes,
    )


def split(arrays: Arrays, fraction: float, seed: int) -> tuple[Arrays, Arrays]:
    """What is kept of (features, labels), and what is held out: a share of each class."""
    images, labels = arrays
    keys = np.random.default_rng(seed).random(len(labels))
    kept, held = pipeline.hold_out(labels, keys, fraction)
    return (images[kept], labels[kept]), (images[held], labels[held])
