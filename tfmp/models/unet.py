"""U-Nets, which give each pixel of an image its class.

The way down halves the sides and doubles the channels, `depth` times; the way up does the reverse,
and joins to each of its levels what the way down had there. Each level has two 3x3 convolutions.

It differs from the paper's in three ways that are usual today: convolutions pad, so that there are
as many logits as pixels, and nothing is cropped; each is followed by batch normalization, and so
has no bias of its own; and weights are drawn by the same rule, He's, but of the seed and the
layer's name. Only Keras' own layers and operations are used: a saved model loads without tfmp.

Of the precision: images are normalized in float32, and the logits are float32 under every policy.
Bilinear upsampling is two weighted sums of neighbors along each axis, in the policy's dtype, where
the weights 3/4 and 1/4 are exact. It computes what `keras.layers.UpSampling2D` does, up to
rounding. Of that one XLA doesn't compile the gradient in half precision: it comes in float32, and
the next ReLU refuses it. And XLA does this one 6 to 10 times as fast: on two cores of a shared CPU,
16 images of 32x32 and 64 channels, forward and backward, took 14 ms against 138 in float32 and 21
against 128 in float16 (medians of 7, TensorFlow 2.21). Without XLA it is the other way round, 88
against 11 ms.

References:
    Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation,
        arXiv:1505.04597, Figure 1.
    Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167.
"""

import functools
from collections.abc import Callable

import keras
from keras import layers, ops

from tfmp.errors import UserError
from tfmp.models import parts


def unet(
    *,
    filters: int,
    depth: int,
    classes: int,
    input_shape: tuple[int, int, int],
    upsampling: str = "transposed",
    seed: int | None = None,
    name: str = "unet",
) -> keras.Model:
    """Builds a U-Net under the global policy.

    Args:
        filters: Channels of the first level; each further one has twice as many.
        depth: Times that the sides are halved.
        classes: Number of logits of each pixel.
        input_shape: (height, width, channels) of an image, in pixels; height and width are
            multiples of 2**depth.
        upsampling: "transposed" (a transposed 2x2 convolution, as published) or "bilinear"
            (bilinear interpolation and a 1x1 convolution).
        seed: Seed of the initial weights, drawn for each layer from this seed and its name. None
            leaves them to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A built functional model: images [batch, height, width, channels] of 0-255, any dtype, to
        logits [batch, height, width, classes] float32.

    Raises:
        ValueError: A shape, a size or a way of upsampling that can't be.
    """
    classes, input_shape = parts.check(classes, input_shape)
    _check(filters, depth, input_shape, upsampling)
    net = _Layers(seed)
    images = keras.Input(input_shape, name="images")
    x = parts.normalize(images)
    levels = []
    for level in range(1, depth + 1):
        x = net.block(x, filters * 2 ** (level - 1), f"down{level}")
        levels.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = net.block(x, filters * 2**depth, "bottom")
    for level in range(depth, 0, -1):
        width = filters * 2 ** (level - 1)
        x = UPSAMPLINGS[upsampling](net, x, width, f"up{level}")
        x = layers.Concatenate(name=f"up{level}_join")([levels[level - 1], x])
        x = net.block(x, width, f"up{level}")
    logits = layers.Conv2D(
        classes,
        1,
        # (Ten times smaller weights, as classifiers have, left digits on noise unlearned for long.)
        kernel_initializer=keras.initializers.GlorotUniform(seed=net.seed("head")),
        dtype="float32",
        name="head",
    )(x)
    return keras.Model(images, logits, name=name)


class _Layers(parts.Layers):
    """The layers of one network: their common settings, and the seed of each."""

    def initial(self, name: str):
        """He's variance, as the paper has it."""
        return keras.initializers.HeNormal(seed=self.seed(name))

    def block(self, x, width: int, name: str):
        """Twice: a 3x3 convolution, batch normalization and a ReLU."""
        for place in ("1", "2"):
            conv = f"{name}_conv{place}"
            x = layers.Conv2D(
                width,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer=self.initial(conv),
                name=conv,
            )(x)
            x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn{place}")(x)
            x = layers.ReLU(name=f"{name}_relu{place}")(x)
        return x


def _transposed(net: _Layers, x, width: int, name: str):
    name = f"{name}_grow"
    return layers.Conv2DTranspose(
        width, 2, strides=2, kernel_initializer=net.initial(name), name=name
    )(x)


def _bilinear(net: _Layers, x, width: int, name: str):
    # The 1x1 convolution first: both are linear, so the order is free, and it is done on a quarter
    # of the pixels.
    x = layers.Conv2D(width, 1, kernel_initializer=net.initial(name), name=f"{name}_grow")(x)
    return bilinear(x)


def bilinear(x):
    """Twice the height and width, by bilinear interpolation between the pixels' centers.

    Args:
        x: `keras.KerasTensor` or tensor [batch, height, width, channels] of any float dtype.

    Returns:
        [batch, 2 x height, 2 x width, channels] of the same dtype.
    """
    for axis in (1, 2):
        sizes = list(x.shape[1:])
        sizes[axis - 1] *= 2
        first, last = _slice(x, slice(1), axis), _slice(x, slice(-1, None), axis)
        before = ops.concatenate([first, _slice(x, slice(-1), axis)], axis)
        after = ops.concatenate([_slice(x, slice(1, None), axis), last], axis)
        x = ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = ops.reshape(x, (-1, *sizes))
    return x


def _slice(x, part: slice, axis: int):
    """Some of the rows (axis 1) or columns (axis 2)."""
    return x[:, part] if axis == 1 else x[:, :, part]


def _check(filters, depth, input_shape, upsampling) -> None:
    if filters < 1 or depth < 1:
        raise UserError(f"filters and depth: expected 1 or more. Received: {filters}, {depth}")
    height, width, _ = input_shape
    if height % 2**depth or width % 2**depth:
        raise UserError(
            f"image size: expected a height and width that can be halved {depth} times, multiples "
            f"of {2**depth}. Received: {height}x{width}"
        )
    if upsampling not in UPSAMPLINGS:
        raise UserError(
            f"upsampling: expected one of {', '.join(UPSAMPLINGS)}. Received: {upsampling!r}"
        )


UPSAMPLINGS: dict[str, Callable] = {"transposed": _transposed, "bilinear": _bilinear}

MODELS: dict[str, Callable[..., keras.Model]] = {
    # For images of 32 px or so.
    "unet_small": functools.partial(unet, filters=16, depth=2),
    # As published.
    "unet": functools.partial(unet, filters=64, depth=4),
}
