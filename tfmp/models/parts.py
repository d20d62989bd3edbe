"""What the builders share: checks, normalized inputs, and seeds by name."""

import numbers
import zlib
from collections.abc import Iterable, Sequence

from keras import layers, ops

from tfmp.errors import UserError

# Mean and standard deviation of ImageNet's training images, red, green and blue, of 0-1; the
# last pair, their averages, serves images of any other number of channels.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GENERIC_MEAN = 0.449
GENERIC_STD = 0.226
# A number so many deviations from its column's mean, or more, counts as that many: far outliers and
# infinities stay within float16's range. Of up to 10,000 numbers none is further off.
LIMIT = 100.0


def check(classes: int, input_shape: tuple[int, int, int]) -> tuple[int, tuple[int, int, int]]:
    """Raises a `UserError` unless there can be a classifier of such images.

    Args:
        classes: Number of logits.
        input_shape: (height, width, channels) of an image, in pixels.

    Returns:
        Both, by Python's own integers and in a tuple.
    """
    return size("classes", classes), image_shape(input_shape)


def image_shape(input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of an image, (height, width, channels), in Python's own integers.

    Raises:
        UserError: It is none.
    """
    sides = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(sides) != 3 or not all(isinstance(n, numbers.Integral) and n > 0 for n in sides):
        raise UserError(
            "input_shape: expected (height, width, channels), three positive integers without "
            f"the batch. Received: {sides or input_shape}"
        )
    height, width, channels = map(int, sides)
    return height, width, channels


def size(name: str, number: int, least: int = 1) -> int:
    """Any integer, such as numpy's, as Python's own, which Keras' layers want.

    Args:
        name: What it is the size of, for the message.
        number: The integer.
        least: The smallest that can be.

    Raises:
        UserError: It is none, or smaller.
    """
    if not isinstance(number, numbers.Integral) or number < least:
        raise UserError(f"{name}: expected an integer, {least} or more. Received: {number!r}")
    return int(number)


def normalize(images):
    """Images of 0-255 to about zero mean and unit deviation, in float32 under every policy.

    Args:
        images: `keras.KerasTensor` [batch, height, width, channels].
    """
    channels = images.shape[-1]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if channels != len(IMAGENET_MEAN):
        mean, std = (GENERIC_MEAN,) * channels, (GENERIC_STD,) * channels
    return layers.Rescaling(
        scale=[1 / (255 * s) for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype="float32",
        name="normalize",
    )(images)


def standardize(raw, means: Sequence[float], deviations: Sequence[float]):
    """Numbers of any size to zero mean and unit deviation, in float32 under every policy.

    NaN becomes 0, and what is more than 100 deviations away counts as 100 away.

    Args:
        raw: `keras.KerasTensor` [..., columns] float32.
        means: Of each column.
        deviations: Of each column, above 0.
    """
    # Two layers: one, x * scale + offset, would lose small differences beside a large mean.
    x = layers.Rescaling(1.0, [-x for x in means], dtype="float32", name="center")(raw)
    x = layers.Rescaling([1 / x for x in deviations], dtype="float32", name="normalize")(x)
    return ops.where(ops.isnan(raw), 0.0, ops.clip(x, -LIMIT, LIMIT))


def seed_of(seed: int | None, name: str) -> int | None:
    """The seed of the layer `name`; by its name, so that it doesn't shift with the others."""
    return None if seed is None else zlib.crc32(f"{seed}/{name}".encode())


class Layers:
    """What makes the layers of one network: a builder's subclass has their common settings.

    Args:
        seed: Seed of the whole network, or None: `keras.utils.set_random_seed`'s.
        dropout: Share of features that `dropped` drops, unless told otherwise.
    """

    def __init__(self, seed: int | None, dropout: float = 0.0):
        self._seed = seed
        self._dropout = dropout

    def seed(self, name: str) -> int | None:
        """The seed of the layer `name`."""
        return seed_of(self._seed, name)

    def dropped(self, x, name: str, rate: float | None = None, noise_shape=None):
        """Dropout, where there is any; of the network's own rate unless another is given."""
        rate = self._dropout if rate is None else rate
        if not rate:
            return x
        return layers.Dropout(rate, noise_shape=noise_shape, seed=self.seed(name), name=name)(x)
