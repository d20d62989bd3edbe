"""`digit_canvases`: gray canvases with handwritten digits on noise, and the class of each pixel.

The digits are those of scikit-learn, so that nothing has to be fetched. On each canvas of 32x32
pixels lie six of them at random places, one partly behind the other at times; the ink is of random
strength, and noise is over all of it. A pixel's class is its
digit (1 to 10 for "0" to "9") where there is enough ink of it, else background (0). So a pixel's
own brightness says ink or no ink, but not of which digit.

No digit is in two splits, and those of the test split are by other writers than all before: as in
`tfmp.data.digits` they are the last 360. The validation digits are the rows before these, so
that few of their writers are in the training split.
"""

import numpy as np

from tfmp.data import digits, memory
from tfmp.data.base import Data, DataError, Options

SIZE = 32
DIGITS = 6
CANVASES = {"train": 1024, "validation": 128, "test": 256}
CLASS_NAMES = ("background", *map(str, range(10)))
NOISE = 16.0  # standard deviation, of 255
# Of the 16 levels of ink, the least that makes a pixel the digit's.
LEAST_INK = 5


def load(name: str, options: Options) -> Data:
    """Composes the canvases; the same ones for the same seed.

    `validation_fraction` is the share of the rows before the test digits that validation gets.

    Raises:
        DataError: If another image size than 32 is asked for.
    """
    if options.image_size not in (None, SIZE):
        raise DataError(
            f"Expected image_size {SIZE} or None, since {name} are {SIZE}x{SIZE}. Received: "
            f"{options.image_size}"
        )
    from sklearn.datasets import load_digits  # takes a second

    found = load_digits()
    parts = {}
    for number, (part, rows) in enumerate(split(options.validation_fraction).items()):
        rng = np.random.default_rng([options.seed, number])
        count = CANVASES[part] if len(rows) else 0
        parts[part] = compose(found.images[rows], found.target[rows], count, rng)
    return memory.from_arrays(
        name,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        class_names=CLASS_NAMES,
        augmentation="shift",
        options=options,
    )


def split(validation_fraction: float) -> dict[str, np.ndarray]:
    """Rows of scikit-learn's digits that each split is composed of."""
    rows = np.arange(1797)
    kept, test = rows[: -digits.TEST_ROWS], rows[-digits.TEST_ROWS :]
    held = round(validation_fraction * len(kept))
    return {"train": kept[: len(kept) - held], "validation": kept[len(kept) - held :], "test": test}


def compose(images, labels, count: int, rng) -> memory.Arrays:
    """Canvases and masks of some digits.

    Args:
        images: [digits, 8, 8] of 0-16.
        labels: [digits] integers of 0-9.
        count: Number of canvases.
        rng: `numpy.random.Generator`.

    Returns:
        (canvases [count, 32, 32, 1] uint8, masks [count, 32, 32] int32).
    """
    ink = np.zeros((count, SIZE, SIZE))
    masks = np.zeros((count, SIZE, SIZE), np.int32)
    for canvas, mask in zip(ink, masks, strict=True):
        for row in rng.integers(len(images), size=DIGITS):
            digit = images[row]
            top, left = rng.integers(SIZE - len(digit) + 1, size=2)
            place = np.s_[top : top + len(digit), left : left + len(digit)]
            there = digit >= LEAST_INK
            canvas[place] = np.where(there, digit * rng.uniform(0.6, 1.0), canvas[place])
            mask[place] = np.where(there, 1 + labels[row], mask[place])
    pixels = 40 + ink * (175 / 16) + rng.normal(0, NOISE, ink.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)[..., None], masks
