"""RandAugment: two changes of each image, drawn from 13, all of one strength.

All is computed in whole numbers, as on the 8-bit images that it was made for, so that XLA,
TensorFlow without it, CPU and GPU agree to the bit. Of the paper's 14 changes equalization is
missing, which would need a histogram of each image. The moves of both rounds come first, as one,
and by the nearest pixel; what they uncover is black.

References:
    Cubuk et al. (2020), RandAugment: Practical Automated Data Augmentation with a Reduced Search
        Space, section 3 (the changes), section 4.4 (two rounds of strength 9 for ImageNet).
    torchvision, transforms/autoaugment.py, class RandAugment (what a strength means; 30 is the
        highest), and Pillow, ImageEnhance and Image.convert (what the changes are).
"""

import math

import tensorflow as tf

ROUNDS = 2
STRENGTH = 9 / 30
# Whole numbers stand for fractions of these: of a matrix' entry, of a pixel, and of a blend.
MOVE_UNIT = 2**10
PIXEL_UNIT = 2**4
BLEND_UNIT = 2**8

SHEAR = 0.3 * STRENGTH
ANGLE = math.radians(30 * STRENGTH)
SHIFT = 150 / 331 * STRENGTH  # of a side
BLEND = round(0.9 * STRENGTH * BLEND_UNIT)
SOLARIZE_FROM = round(255 * (1 - STRENGTH))
POSTERIZE_STEP = 2 ** round(4 * STRENGTH)

# Rows (y from y, y from x, y from the height, x from y, x from x, x from the width): where a pixel
# comes from, about the middle of the image.
MOVES = (
    (1, SHEAR, 0, 0, 1, 0),
    (1, 0, 0, SHEAR, 1, 0),
    (1, 0, SHIFT, 0, 1, 0),
    (1, 0, 0, 0, 1, SHIFT),
    (math.cos(ANGLE), math.sin(ANGLE), 0, -math.sin(ANGLE), math.cos(ANGLE), 0),
)
STAY = (1, 0, 0, 0, 1, 0)


def randaugment(images: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
    """Two random changes of each image.

    Args:
        images: [batch, height, width, channels] of 0-255, float32 or uint8; fractions are rounded
            off. Of images of one channel or two the change of color is none.
        words: [batch, 2 * ROUNDS] uint32 random bits.

    Returns:
        Images of the same shape and dtype, whole numbers of 0-255.
    """
    pixels = tf.cast(tf.round(tf.cast(images, tf.float32)), tf.int32)
    count = len(MOVES) + len(COLORS) + 1  # one is to leave the image as it is
    chosen = [tf.cast(words[:, i] % count, tf.int32) for i in range(ROUNDS)]
    signs = [tf.cast(words[:, ROUNDS + i] % 2, tf.int32) for i in range(ROUNDS)]
    pixels = _moved(pixels, chosen, signs)
    for choice, sign in zip(chosen, signs, strict=True):
        blend = (2 * sign[:, None, None, None] - 1) * BLEND
        changed = pixels
        for index, change in enumerate(COLORS, start=len(MOVES)):
            here = (choice == index)[:, None, None, None]
            changed = tf.where(here, change(pixels, blend), changed)
        pixels = changed
    return tf.cast(pixels, images.dtype)


def _moved(pixels, chosen, signs):
    """The moves of all rounds at once, as one look-up of pixels."""
    height, width, channels = pixels.shape[1:]
    table = tf.constant(
        [
            [round(MOVE_UNIT * entry) for entry in row]
            for move in (*MOVES, STAY)
            for row in (_opposite(move), move)
        ],
        tf.int32,
    )
    # The middle of the image may lie between two pixels.
    middle_y, middle_x = (PIXEL_UNIT // 2 * (side - 1) for side in (height, width))
    y = (PIXEL_UNIT * tf.range(height) - middle_y)[None, :, None]
    x = (PIXEL_UNIT * tf.range(width) - middle_x)[None, None, :]
    for choice, sign in zip(chosen, signs, strict=True):
        rows = tf.gather(table, 2 * tf.minimum(choice, len(MOVES)) + sign)
        yy, yx, down, xy, xx, right = (part[:, None, None] for part in tf.unstack(rows, axis=1))
        y, x = (
            _nearest(yy * y + yx * x + PIXEL_UNIT * height * down, MOVE_UNIT),
            _nearest(xy * y + xx * x + PIXEL_UNIT * width * right, MOVE_UNIT),
        )
    row, column = _nearest(y + middle_y, PIXEL_UNIT), _nearest(x + middle_x, PIXEL_UNIT)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = tf.where(inside, row * width + column, 0)
    flat = tf.reshape(pixels, [-1, height * width, channels])
    found = tf.gather(flat, tf.reshape(place, [-1, height * width]), batch_dims=1)
    found = tf.reshape(found, tf.shape(pixels))
    return tf.where(inside[..., None], found, 0)


def _opposite(move):
    """The same move the other way, as a row of the table."""
    yy, yx, down, xy, xx, right = move
    return yy, -yx, -down, -xy, xx, -right


def _nearest(value, unit):
    return (value + unit // 2) // unit


# --- changes of color: functions of (pixels int32, blend int32 [batch, 1, 1, 1])


def _blended(pixels, other, blend):
    """Away from another image (blend above 0) or towards it."""
    change = ((pixels - other) * blend + BLEND_UNIT // 2) // BLEND_UNIT
    return tf.clip_by_value(pixels + change, 0, 255)


def _gray(pixels):
    """Luma as Pillow's "L" has it; of other than three channels their own."""
    if pixels.shape[-1] != 3:
        return pixels
    weights = tf.constant([19595, 38470, 7471], tf.int32)
    return (tf.reduce_sum(pixels * weights, axis=-1, keepdims=True) + 2**15) // 2**16


def _brightness(pixels, blend):
    return _blended(pixels, 0, blend)


def _color(pixels, blend):
    return _blended(pixels, _gray(pixels), blend)


def _contrast(pixels, blend):
    gray = _gray(pixels)
    count = gray.shape[1] * gray.shape[2] * gray.shape[3]
    mean = (tf.reduce_sum(gray, axis=(1, 2, 3), keepdims=True) + count // 2) // count
    return _blended(pixels, mean, blend)


def _sharpness(pixels, blend):
    """Away from or towards what a 3x3 filter (5 in the middle, 1 around) makes smooth."""
    height, width = pixels.shape[1:3]
    if min(height, width) < 3:
        return pixels
    windows = [pixels[:, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    smooth = (tf.add_n(windows) + 4 * windows[4] + 6) // 13
    # The border stays as it is, as in Pillow.
    edge = tf.pad(tf.ones_like(smooth[:1, :, :, :1]), [[0, 0], [1, 1], [1, 1], [0, 0]]) == 0
    smooth = tf.pad(smooth, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return _blended(pixels, tf.where(edge, pixels, smooth), blend)


def _posterize(pixels, blend):
    del blend
    return pixels // POSTERIZE_STEP * POSTERIZE_STEP


def _solarize(pixels, blend):
    del blend
    return tf.where(pixels >= SOLARIZE_FROM, 255 - pixels, pixels)


def _autocontrast(pixels, blend):
    """Each channel stretched to 0-255."""
    del blend
    low = tf.reduce_min(pixels, axis=(1, 2), keepdims=True)
    high = tf.reduce_max(pixels, axis=(1, 2), keepdims=True)
    stretched = (pixels - low) * 255 // tf.maximum(high - low, 1)
    return tf.where(high > low, stretched, pixels)


COLORS = (_brightness, _color, _contrast, _sharpness, _posterize, _solarize, _autocontrast)
