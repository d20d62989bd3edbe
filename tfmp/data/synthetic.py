"""`synthetic`: random images of 1,000 classes, to measure speed without any data.

A pool of them is drawn once and stays in memory, so that reading and decoding cost nothing. There
is nothing to learn in it beyond the pool itself.
"""

import numpy as np

from tfmp.data import crops, memory
from tfmp.data.base import Data, Options

CLASSES = 1000
POOL_BYTES = 2**28
MOST_EXAMPLES = 2**15


def load(name: str, options: Options) -> Data:
    """Draws the pool: 1,783 images of 224x224x3 at the default size, more of smaller ones.

    Test and validation set are an eighth of it each, drawn apart: holding out of the pool would
    take most of its few images a class. A `validation_fraction` of 0 means none here too.
    """
    size = options.image_size or crops.DEFAULT_SIZE
    count = max(min(POOL_BYTES // (size * size * 3), MOST_EXAMPLES), 64)
    rng = np.random.default_rng(options.seed)

    def draw(examples):
        pixels = rng.bytes(examples * size * size * 3)
        images = np.frombuffer(pixels, np.uint8).reshape(examples, size, size, 3)
        return images, rng.integers(CLASSES, size=examples)

    return memory.from_arrays(
        name,
        train=draw(count),
        validation=draw(count // 8 if options.validation_fraction else 0),
        test=draw(count // 8),
        class_names=tuple(map(str, range(CLASSES))),
        augmentation="none",
        options=options,
    )
