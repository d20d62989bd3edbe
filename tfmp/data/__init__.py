"""Labeled images as `tf.data`, exactly resumable, from what is embedded, on disk, or in TFDS.

`load` gives a `Data`; `augment` has what runs on the device before the model. To add a data set,
write a module with `load(name, options) -> Data` and add its line to `DATASETS`.
"""

from tfmp.data import augment, digits, folder, from_tfds, pipeline, synthetic
from tfmp.data.base import Data, DataError, Options
from tfmp.data.pipeline import steps_per_epoch, to_device

DATASETS = {
    "digits": digits.load,
    "synthetic": synthetic.load,
}
PREFIXES = {
    "folder": folder.load,
}

__all__ = [
    "DATASETS",
    "PREFIXES",
    "Data",
    "DataError",
    "Options",
    "augment",
    "load",
    "pipeline",
    "steps_per_epoch",
    "test_feature",
    "to_device",
]


def load(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    validation_fraction: float = 0.1,
    image_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Loads a data set of labeled images.

    A set's own validation split is the validation set where there is a labeled test split beside
    it. Where there is none (`imagenet2012`, a folder with `train` and `val` alone), the
    validation split serves as the test set, and validation is held out of train: what chose the
    epoch or the learning rate never gives the reported figure.

    Args:
        name: An entry of `DATASETS`, `folder:PATH`, or a name TFDS knows (`cifar10`,
            `imagenette/160px-v2`).
        data_dir: Where prepared TFDS data lie. Defaults to TFDS' own (`TFDS_DATA_DIR`, or
            `~/tensorflow_datasets`).
        manual_dir: Where files fetched by hand lie, from which TFDS then prepares, with their
            checksums enforced.
        validation_fraction: Share of each class held out of train where the set has no
            validation split of its own, in [0, 1); 0 for no validation set.
        image_size: Height and width in pixels. Defaults to the set's own, or 224 where images
            differ.
        seed: Decides what is held out (and what `synthetic` draws). It is not the run's seed: two
            runs are comparable only if they hold out the same examples, so leave it at 0.

    Returns:
        A `Data`.

    Raises:
        DataError: If the name is unknown, or its data are absent, damaged or not labeled images.
    """
    options = Options(data_dir, manual_dir, validation_fraction, image_size, seed)
    prefix, colon, rest = name.partition(":")
    try:
        if colon and prefix in PREFIXES:
            return PREFIXES[prefix](rest, options)
        if name in DATASETS:
            return DATASETS[name](name, options)
        known = [*DATASETS, *(f"{p}:PATH" for p in PREFIXES)]
        return from_tfds.load(name, options, also_known=known)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error


def test_feature(
    name: str,
    feature: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
) -> list[str]:
    """A feature of each test example, such as the superclass of `cifar100`.

    Args:
        name: A name that TFDS knows, of a set with a test split of its own.
        feature: Key of the feature: a label, an integer or a string.
        data_dir: As for `load`.
        manual_dir: As for `load`.
        image_size: As for `load`, whose order depends on it.

    Returns:
        One string an example, in the order of the `test` of `load`; the class's name for a label.

    Raises:
        DataError: The data set is not of TFDS, or has no such feature.
    """
    if name in DATASETS or name.partition(":")[0] in PREFIXES:
        raise DataError(
            f"Expected a data set of TFDS, whose examples have features. Received: {name}. Use a "
            "table with a row for each test example, as FILE.csv:COLUMN."
        )
    options = Options(data_dir, manual_dir, image_size=image_size)
    return from_tfds.test_feature(name, feature, options)
