"""Augmentation as pure functions of tensors, called in the compiled step before the model.

XLA compiles all of it, on CPU and GPU (Keras' Random* layers would turn XLA off for the whole
model), and every draw is a function of the seed alone, the same with and without XLA. All take
`images` [batch, height, width, channels], float32 or uint8, of values 0-255, and `seed` [2] int32
or int64; each image has its own draw; shape and dtype stay.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from tfmp.data import randaugment as rand

# Philox is named because the default differs between XLA and the rest, and so would the draws.
ALGORITHM = "philox"

# Marsaglia and Tsang's method accepts at least 95 % of its proposals for a shape above 1.
GAMMA_PROPOSALS = 16


def none(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Gives the images back as they are."""
    del seed
    return images


def shift(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Moves each image by -1, 0 or 1 pixel in both directions, over black."""
    return _shifted(images, _bits(images, seed), reach=1)


def crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Pads each image by an eighth of its height in black and crops it at random.

    References:
        He et al. (2016), Deep Residual Learning for Image Recognition, section 4.2 (4 pixels for
        images of 32x32).
    """
    return _shifted(images, _bits(images, seed), reach=images.shape[1] // 8)


def flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability 1/2."""
    return _flipped(images, _bits(images, seed))


def crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`crop`, then `flip`."""
    bits = _bits(images, seed)
    return _flipped(_shifted(images, bits, reach=images.shape[1] // 8), bits)


def randaugment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Two of 13 random changes of place or color; see `tfmp.data.randaugment`."""
    # The last word of the seed is the step: other words than those of a flip or crop before.
    words = _random_words([tf.shape(images)[0], 2 * rand.ROUNDS], seed + 2**30)
    return rand.randaugment(images, words)


def flip_randaugment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`flip`, then `randaugment`."""
    return randaugment(flip(images, seed), seed)


def crop_flip_randaugment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`crop_flip`, then `randaugment`."""
    return randaugment(crop_flip(images, seed), seed)


AUGMENTATIONS = {
    "none": none,
    "shift": shift,
    "crop": crop,
    "flip": flip,
    "crop_flip": crop_flip,
    "randaugment": randaugment,
    "flip_randaugment": flip_randaugment,
    "crop_flip_randaugment": crop_flip_randaugment,
}

# Those that only move pixels, and so can move masks alike.
OF_MASKS = ("none", "shift", "crop", "flip", "crop_flip")


def with_masks(
    augmentation: Callable, images: tf.Tensor, masks: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Changes images and masks alike: a mask is moved as one more channel of its image.

    What comes in from outside of the image is black, and class 0.

    Args:
        augmentation: One of `OF_MASKS`, as a function.
        images: [batch, height, width, channels] float32.
        masks: [batch, height, width] integers, the class of each pixel.
        seed: [2] int32 or int64.

    Returns:
        (images, masks), of the shapes and dtypes given.
    """
    layers = tf.concat([images, tf.cast(masks, images.dtype)[..., None]], axis=-1)
    layers = augmentation(layers, seed)
    return layers[..., :-1], tf.cast(layers[..., -1], masks.dtype)


def mixup(
    images: tf.Tensor, labels_one_hot: tf.Tensor, seed: tf.Tensor, alpha: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each image and its label with those of its neighbor in the batch.

    One weight lambda ~ Beta(alpha, alpha) is drawn a batch, as in the paper's own code. The
    neighbor stands for a random partner, since batches come shuffled.

    Args:
        images: [batch, height, width, channels], any real dtype, values 0-255.
        labels_one_hot: [batch, classes], any real dtype.
        seed: [2] int32 or int64.
        alpha: Positive; 0.2 is the paper's choice for ImageNet.

    Returns:
        Images and labels, both float32, of the shapes given.

    Raises:
        ValueError: If alpha isn't positive.

    References:
        Zhang et al. (2018), mixup: Beyond Empirical Risk Minimization, equations of section 2.
    """
    weight = beta(seed, alpha)
    images = tf.cast(images, tf.float32)
    labels = tf.cast(labels_one_hot, tf.float32)
    return tuple(
        weight * values + (1 - weight) * tf.roll(values, shift=1, axis=0)
        for values in (images, labels)
    )


def beta(seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """One draw from Beta(alpha, alpha): scalar float32.

    TensorFlow's own gamma sampler has no XLA kernel. This one draws a fixed number of proposals
    and takes the first accepted; that none is happens less than once in 10^20 draws. The two
    gamma variates enter by their logarithms, so that a small alpha can't underflow; their common
    factor cancels.

    Args:
        seed: [2] int32 or int64.
        alpha: Positive.

    Raises:
        ValueError: If alpha isn't positive.

    References:
        Marsaglia and Tsang (2000), A Simple Method for Generating Gamma Variables, sections 2
        and 6.
    """
    if alpha <= 0:
        raise ValueError(
            f"Expected alpha above 0. Received: {alpha}. Leave mixup out to have none."
        )
    d = alpha + 1 - 1 / 3
    c = 1 / (9 * d) ** 0.5
    radius, angle, accept, boost = tf.unstack(uniform([4, 2, GAMMA_PROPOSALS], seed))
    normal = tf.sqrt(-2 * tf.math.log(radius)) * tf.cos(2 * math.pi * angle)
    v = (1 + c * normal) ** 3
    log_v = tf.math.log(tf.maximum(v, 1e-30))
    accepted = (v > 0) & (tf.math.log(accept) < normal**2 / 2 + d - d * v + d * log_v)
    first = tf.argmax(accepted, axis=1, output_type=tf.int32)
    log_gamma = tf.gather(log_v, first, batch_dims=1) + tf.math.log(boost[:, 0]) / alpha
    return tf.sigmoid(log_gamma[0] - log_gamma[1])


def label_smoothing(labels_one_hot: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Gives every class an equal part of epsilon of the label.

    Args:
        labels_one_hot: [batch, classes], any real dtype.
        epsilon: In [0, 1); 0.1 is the paper's choice.

    Returns:
        [batch, classes] float32.

    Raises:
        ValueError: If epsilon is out of range.

    References:
        Szegedy et al. (2016), Rethinking the Inception Architecture for Computer Vision,
        section 7.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"Expected epsilon in [0, 1). Received: {epsilon}. Use 0 for none.")
    labels = tf.cast(labels_one_hot, tf.float32)
    return (1 - epsilon) * labels + epsilon / labels_one_hot.shape[-1]


def uniform(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Random numbers in (0, 1], the same with and without XLA, of which the logarithm is finite.

    Args:
        shape: Of the result: int32 [n], or a list.
        seed: Int32 or int64 [2].

    Returns:
        Float32 of that shape.
    """
    # TensorFlow and XLA agree about the words, but make different floats of them.
    mantissas = tf.bitwise.right_shift(_random_words(shape, seed), tf.constant(8, tf.uint32))
    return (tf.cast(mantissas, tf.float32) + 1) * 2**-24


def _bits(images, seed):
    """Random bits for each image: uint32 [batch, 3], for rows, columns and the flip."""
    return _random_words([tf.shape(images)[0], 3], seed)


def _random_words(shape, seed):
    return tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg=ALGORITHM)


def _shifted(images, bits, reach):
    if reach:
        for axis in (1, 2):
            images = _shifted_along(images, bits[:, axis - 1] % (2 * reach + 1), reach, axis)
    return images


def _shifted_along(images, offsets, reach, axis):
    """Moves image i by `reach - offsets[i]` pixels along an axis.

    It goes by powers of two, so that a handful of selects does what would take a gather (slow
    under XLA) or a matrix product (which TF32 rounds).
    """
    powers = [2**k for k in range((2 * reach).bit_length())]
    padding = [[0, 0]] * 4
    padding[axis] = [reach, sum(powers) - reach]
    images = tf.pad(images, padding)
    for power in reversed(powers):
        far, near = _without(power, 0, images, axis), _without(0, power, images, axis)
        chosen = tf.bitwise.bitwise_and(offsets, power) > 0
        images = tf.where(chosen[:, None, None, None], far, near)
    return images


def _without(first, last, images, axis):
    """Leaves out the first and last pixels along an axis."""
    keep = slice(first, images.shape[axis] - last)
    return images[:, keep] if axis == 1 else images[:, :, keep]


def _flipped(images, bits):
    chosen = tf.bitwise.bitwise_and(bits[:, 2], 1) > 0
    return tf.where(chosen[:, None, None, None], tf.reverse(images, [2]), images)
