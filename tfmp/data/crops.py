"""From an encoded image (JPEG, PNG, BMP, GIF) to uint8 pixels of one size.

References:
    Szegedy et al. (2015), Going Deeper with Convolutions, section 6 (random crops of 8 to 100 %
    of the area, aspect ratio 3/4 to 4/3).
"""

import re
from collections.abc import Callable

import tensorflow as tf

# Height and width in pixels where the images differ in size and none is asked for.
DEFAULT_SIZE = 224

# Evaluation cuts 224 pixels out of images whose short side was made 256.
EVALUATION_MARGIN = 256 / 224

# In smaller images a random part of the area is too little; `augment.crop` serves there.
SMALLEST_RANDOM_CROP = 65

# Operations that read an encoded image; `random` asks a JPEG for its shape before it decodes.
READS = re.compile("Decode|ExtractJpegShape|ReadFile")
# What they end with where the image is at fault, or its file.
READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
)


def damage(error: tf.errors.OpError) -> str | None:
    """What an error of TensorFlow says of an image that can't be read; None of another error.

    Args:
        error: Its message names the operation.
    """
    if not isinstance(error, READ_ERRORS) or not READS.search(error.message):
        return None
    return re.sub(r"^(\{\{\w+ [^}]*\}\} ?)+(ValueError: )?", "", error.message.splitlines()[0])


def is_large(shape: tuple[int, int, int]) -> bool:
    """Whether images of a shape are cropped at random while they are decoded."""
    return min(shape[:2]) >= SMALLEST_RANDOM_CROP


def pair(shape: tuple[int, int, int], alike: bool) -> tuple[Callable, Callable]:
    """How encoded images come to a shape: (`training(data, seed)`, `evaluation(data)`).

    Args:
        shape: Height and width in pixels, and channels, of the results.
        alike: Whether all images have that size already, so that evaluation takes them whole.
    """
    margin = EVALUATION_MARGIN if is_large(shape) and not alike else 1.0

    def evaluation(data):
        return center(data, shape, margin)

    def training(data, seed):
        return random(data, shape, seed) if is_large(shape) else evaluation(data)

    return training, evaluation


def center(data: tf.Tensor, shape: tuple[int, int, int], margin: float = 1.0) -> tf.Tensor:
    """Decodes an image, resizes it to cover the shape, and cuts out its center.

    Args:
        data: Scalar string, the encoded image.
        shape: Height and width in pixels, and channels, of the result.
        margin: How much larger than the shape the image is made before the cut.

    Returns:
        uint8 of the shape.
    """
    height, width, channels = shape
    image = tf.io.decode_image(data, channels=channels, expand_animations=False)
    image.set_shape([None, None, channels])
    have = tf.shape(image)[:2]
    target = tf.constant([height, width])
    scale = margin * tf.reduce_max(tf.cast(target, tf.float64) / tf.cast(have, tf.float64))
    size = tf.maximum(tf.cast(tf.round(scale * tf.cast(have, tf.float64)), tf.int32), target)
    image = _resized(image, size, always_antialias=True)
    top, left = tf.unstack((size - target) // 2)
    return tf.ensure_shape(image[top : top + height, left : left + width], shape)


def random(data: tf.Tensor, shape: tuple[int, int, int], seed: tf.Tensor) -> tf.Tensor:
    """Decodes a random part of an image and resizes it to the shape.

    Of a JPEG only that part is decoded. What shrinks to less than half is antialiased.

    Args:
        data: Scalar string, the encoded image.
        shape: Height and width in pixels, and channels, of the result.
        seed: int64 [2]; the same seed cuts out the same part.

    Returns:
        uint8 of the shape.
    """
    height, width, channels = shape

    def part_of_jpeg():
        begin, size = _window(tf.io.extract_jpeg_shape(data), seed)
        window = tf.concat([begin[:2], size[:2]], axis=0)
        return tf.io.decode_and_crop_jpeg(data, window, channels=channels)

    def part_of_other():
        image = tf.io.decode_image(data, channels=channels, expand_animations=False)
        begin, size = _window(tf.shape(image), seed)
        return tf.slice(image, begin, size)

    if channels in (1, 3):
        image = tf.cond(tf.io.is_jpeg(data), part_of_jpeg, part_of_other)
    else:
        image = part_of_other()
    # Antialiasing takes five times as long as plain bilinear resizing, most of an image's time:
    # training pays only for what would alias badly.
    image = _resized(image, tf.constant([height, width]), always_antialias=False)
    return tf.ensure_shape(image, shape)


def squeezed(image: tf.Tensor, mask: tf.Tensor, size: tuple[int, int]) -> tuple:
    """A whole image, uint8 [height, width, channels], and its mask of integers, in a size."""
    pixels = tf.image.resize(image, size, antialias=True)
    # The mask's by the nearest, since there is nothing between two classes.
    return _rounded(pixels), tf.image.resize(mask, size, method="nearest")


def _rounded(pixels):
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)


def _window(shape, seed):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, size


def _resized(image, size, always_antialias):
    def resize(antialias):
        return _rounded(tf.image.resize(image, size, antialias=antialias))

    have = tf.shape(image)[:2]
    shrunk = always_antialias or tf.reduce_any(have > 2 * size)
    return tf.case(
        [
            (tf.reduce_all(have == size), lambda: image),
            (tf.convert_to_tensor(shrunk), lambda: resize(antialias=True)),
        ],
        default=lambda: resize(antialias=False),
    )
