"""`digits`: 1,797 handwritten digits of 8x8 gray pixels, embedded in scikit-learn.

It trains in seconds anywhere and needs no network. The last 360 rows are the test set, as they are
and not drawn at random: neighboring rows are often of one writer.

References:
    Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository.
"""

import numpy as np

from tfmp.data import memory
from tfmp.data.base import Data, DataError, Options

TEST_ROWS = 360


def load(name: str, options: Options) -> Data:
    """Loads the digits with their values of 0-16 stretched to 0-255.

    Raises:
        DataError: If another image size than 8 is asked for.
    """
    if options.image_size not in (None, 8):
        raise DataError(
            f"Expected image_size 8 or None, since {name} are 8x8. Received: {options.image_size}"
        )
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = found.target
    return memory.from_arrays(
        name,
        train=(images[:-TEST_ROWS], labels[:-TEST_ROWS]),
        test=(images[-TEST_ROWS:], labels[-TEST_ROWS:]),
        class_names=tuple(map(str, range(10))),
        augmentation="shift",
        options=options,
    )
