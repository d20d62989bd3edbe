"""Residual networks, version 1.5, for images of 0-255.

Version 1.5 has the stride of a bottleneck block in its 3x3 convolution, where the first paper
had it in the 1x1 before it; NVIDIA, torchvision and MLPerf all train this form. Parameter counts
and padding equal torchvision's, so published accuracies are a fair comparison.

The images are normalized inside the model, in float32 and from any dtype, and the logits are
float32 under every policy. Only Keras' own layers are used: a saved model loads without tfmp.

References:
    He et al. 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385, Table 1.
    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, section 5.1
        (zero gamma in each block's last normalization, head drawn with deviation 0.01).
    NVIDIA, ResNet v1.5 for PyTorch (the name and the place of the stride).
"""

import functools
from collections.abc import Callable

import keras
from keras import layers

from tfmp.errors import UserError
from tfmp.models import parts

# The largest image that gets the 3x3 stem: the ImageNet stem divides the sides by four, which
# leaves nothing of a CIFAR image (32 px) to the last stages.
SMALL_IMAGE = 64


def resnet(
    *,
    block: str,
    depths: tuple[int, ...],
    widths: tuple[int, ...] = (64, 128, 256, 512),
    classes: int,
    input_shape: tuple[int, int, int],
    stem: str = "auto",
    seed: int | None = None,
    name: str = "resnet",
) -> keras.Model:
    """Builds a residual network under the global policy.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1 and four times the
            width).
        depths: Blocks of each stage; every stage but the first halves height and width.
        widths: Channels of each stage's 3x3 convolutions.
        classes: Number of logits.
        input_shape: (height, width, channels) of an image, in pixels.
        stem: "imagenet" (7x7 convolution and 3x3 pooling, each of stride 2), "small" (one 3x3
            convolution of stride 1), or "auto": small up to 64 px of the shorter side.
        seed: Seed of the initial weights, drawn for each layer from this seed and its name.
            None leaves them to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A built functional model: images [batch, height, width, channels] of 0-255, any dtype, to
        logits [batch, classes] float32.

    Raises:
        ValueError: A shape, a number of classes, a block or a stem that can't be.
    """
    classes, input_shape = parts.check(classes, input_shape)
    _check(block, depths, widths, stem)
    if stem == "auto":
        stem = "small" if min(input_shape[:2]) <= SMALL_IMAGE else "imagenet"
    net = _Layers(seed)
    images = keras.Input(input_shape, name="images")
    x = parts.normalize(images)
    if stem == "imagenet":
        x = net.conv_bn(x, widths[0], 7, stride=2, name="stem_{}", relu=True)
        # After the ReLU a border of zeros is what a border of minus infinity would give.
        x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    else:
        x = net.conv_bn(x, widths[0], 3, name="stem_{}", relu=True)
    make = BLOCKS[block]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        for index in range(1, depth + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            x = make(net, x, width, stride, f"stage{stage}_block{index}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=net.seed("head")),
        dtype="float32",
        name="head",
    )(x)
    return keras.Model(images, logits, name=name)


class _Layers(parts.Layers):
    """The layers of one network: their common settings, and the seed of each."""

    def conv_bn(self, x, width, kernel, *, name, stride=1, relu=False, gamma="ones"):
        """Convolution without bias, batch normalization and perhaps a ReLU.

        `name` holds a pair of braces for "conv", "bn" and so on.
        """
        if stride > 1 and kernel > 1:
            # padding="same" pads only the far side of an even image; the published nets pad both.
            x = layers.ZeroPadding2D(kernel // 2, name=name.format("pad"))(x)
        x = layers.Conv2D(
            width,
            kernel,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal", seed=self.seed(name.format("conv"))
            ),
            name=name.format("conv"),
        )(x)
        x = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, name=name.format("bn")
        )(x)
        return layers.ReLU(name=name.format("relu"))(x) if relu else x


def _basic(net: _Layers, x, width: int, stride: int, name: str):
    """Two 3x3 convolutions beside a shortcut."""
    shortcut = _shortcut(net, x, width, stride, name)
    x = net.conv_bn(x, width, 3, stride=stride, name=f"{name}_{{}}1", relu=True)
    x = net.conv_bn(x, width, 3, name=f"{name}_{{}}2", gamma="zeros")
    return _join(shortcut, x, name)


def _bottleneck(net: _Layers, x, width: int, stride: int, name: str):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; four times `width` channels leave it."""
    shortcut = _shortcut(net, x, 4 * width, stride, name)
    x = net.conv_bn(x, width, 1, name=f"{name}_{{}}1", relu=True)
    x = net.conv_bn(x, width, 3, stride=stride, name=f"{name}_{{}}2", relu=True)
    x = net.conv_bn(x, 4 * width, 1, name=f"{name}_{{}}3", gamma="zeros")
    return _join(shortcut, x, name)


def _shortcut(net: _Layers, x, width: int, stride: int, name: str):
    """The identity where the shape stays, else a 1x1 convolution (the paper's option B)."""
    if stride == 1 and x.shape[-1] == width:
        return x
    return net.conv_bn(x, width, 1, stride=stride, name=f"{name}_shortcut_{{}}")


def _join(shortcut, x, name: str):
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def _check(block, depths, widths, stem) -> None:
    if block not in BLOCKS:
        raise UserError(f"block: expected one of {sorted(BLOCKS)}. Received: {block!r}")
    if len(depths) != len(widths) or not depths:
        raise UserError(
            f"depths and widths: expected one of each for every stage. Received: {depths}, {widths}"
        )
    if stem not in STEMS:
        raise UserError(f"stem: expected one of {STEMS}. Received: {stem!r}")


BLOCKS: dict[str, Callable] = {"basic": _basic, "bottleneck": _bottleneck}
STEMS = ("auto", "imagenet", "small")

MODELS: dict[str, Callable[..., keras.Model]] = {
    # For images of 8 to 32 px; 96,554 parameters with 10 classes and one channel.
    "resnet_small": functools.partial(resnet, block="basic", depths=(2, 1), widths=(32, 64)),
    "resnet18": functools.partial(resnet, block="basic", depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet, block="basic", depths=(3, 4, 6, 3)),
    "resnet50": functools.partial(resnet, block="bottleneck", depths=(3, 4, 6, 3)),
    "resnet101": functools.partial(resnet, block="bottleneck", depths=(3, 4, 23, 3)),
    "resnet152": functools.partial(resnet, block="bottleneck", depths=(3, 8, 36, 3)),
}
