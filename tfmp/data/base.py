"""What every loader takes and gives: `Options`, `Data` and `DataError`."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from tfmp import errors


class DataError(errors.UserError):
    """The data can't be used as they were asked for; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What `tfmp.data.load` hands to a loader.

    Attributes:
        data_dir: Folder of prepared TFDS data, or None for TFDS' own default.
        manual_dir: Folder of files fetched by hand, from which TFDS prepares.
        validation_fraction: Share of the training set held out for validation, in [0, 1).
        image_size: Height and width of the images in pixels, or None for the data set's own.
        seed: Decides what is held out (and what `synthetic` draws); not the order of training.
    """

    data_dir: str | None = None
    manual_dir: str | None = None
    validation_fraction: float = 0.1
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise DataError(
                "Expected validation_fraction in [0, 1). "
                f"Received: {self.validation_fraction}. Use 0 for no validation set."
            )
        if self.image_size is not None and self.image_size < 1:
            raise DataError(f"Expected image_size of at least 1 pixel. Received: {self.image_size}")
        if self.seed < 0:
            raise DataError(f"Expected a seed of at least 0. Received: {self.seed}")


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of labeled examples, ready to be iterated.

    Features are a tensor or a dict of tensors, [batch, ...]. Images are uint8 in 0-255: models
    normalize, and `tfmp.data.augment` runs on the device.

    Attributes:
        name: What `load` was asked for.
        input_shape: Shape of an example's features, of images height, width and channels; where
            there are several, a dict of shapes by name.
        class_names: One name a class, in the order of the labels; empty where there are none.
        sizes: Number of examples in "train", "validation" and "test"; 0 where there is none.
        train: `train(batch_size, *, seed, start_step=0, multiple_of=1, part=(0, 1))` gives an
            endless `tf.data.Dataset` of (features, labels); of images (uint8 [batch, height,
            width, channels], int32 [batch]). Batch k is a function of (data, seed, k) alone; an
            epoch has `steps_per_epoch(...)` batches, and drops the remainder. With the part
            (i, n) it is the i-th n-th of each batch, and only that is decoded.
        validation: `validation(batch_size)` gives every example once, in order, as (features,
            labels, weights float32 [batch]); the last batch is filled up with zeros of
            weight 0. None where there is no validation set.
        test: Likewise.
        augmentation: The entry of `augment.AUGMENTATIONS` that suits these images.
        example: What an example is, such as "image"; in the singular.
        tokens: Tokens of an example, where speed is counted in these; else None.
        read_by: What a worker that takes a part need not read of the other parts: "file" where an
            example is a file, else "element": it reads them, and decodes its own.
        origin: What tells these very data from others of the same name, such as a version or a
            checksum, which is its last word; empty where the name says it all.
        notes: What was done to the data, or the user should know of them, each a sentence.
    """

    name: str
    input_shape: Any
    class_names: tuple[str, ...]
    sizes: dict[str, int]
    train: Callable
    validation: Callable | None
    test: Callable | None
    augmentation: str = "none"
    example: str = "image"
    tokens: int | None = None
    read_by: Literal["element", "file"] = "element"
    origin: str = ""
    notes: tuple[str, ...] = ()

    def is_other_than(self, origin: str) -> bool:
        """Whether a former origin, "" where it is not known, is that of other data."""
        # Its last word is the checksum or version; a Python before it may be another.
        return bool(origin) and origin.split()[-1:] != self.origin.split()[-1:]
