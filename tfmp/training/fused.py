"""Layers that compute what Keras' do in fewer passes over the memory of a GPU.

A training step of a convolutional net spends half of its time on reading and writing activations.
While a step is traced for XLA, `fused_layers` changes how layers compute:

- BatchNormalization gets mean and variance from one reading of its input, where Keras' takes two.
- The gradient of MaxPooling2D looks up where each maximum was; XLA's own searches all windows
  again and adds up atomically.
- A convolution by a kernel of 1x1 is a matrix product; with strides, it is a convolution of the
  places that it reads.
- Layers on sequences compute on one matrix of all positions; see `tfmp.training.rows`.

Attention is in `tfmp.training.cudnn_attention`, GELU in `tfmp.training.gelu`.

What they compute is the same up to rounding. Variables, saved models, evaluation and `predict`
stay as they are. Second derivatives, as of a gradient penalty, differ from Keras' where they pass
through BatchNormalization: TensorFlow's own variance takes its mean for a constant there.
"""

import contextlib
import itertools
import math

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled  # no public one

from tfmp.training import rows
from tfmp.training.replaced import replaced

# The most places in a pooling window: each is one more read of the input, spelled out.
MOST_PLACES = 16

# The sample that tells about where a channel's mean is: so many examples, and values along each
# other axis. (A kernel over 4,096 values of each channel took 20 us, over all layers 2.5 % of a
# step of ResNet-50.)
SAMPLED_EXAMPLES = 8
SAMPLED_ALONG_AXIS = 2

REPLACED = {"call", "convolution_op", "_moments"}


def is_default(jit_compile):
    """Whether layers are to run fused where nobody has said: where XLA compiles for a GPU."""
    return jit_compile and bool(tf.config.list_physical_devices("GPU"))


@contextlib.contextmanager
def fused_layers(model, only=keras.layers.Layer):
    """A context in which a model's layers run fused.

    Args:
        model: A Keras model. Of its layers, wherever they are in it, those are changed that are
            exactly Keras' own and have their channels last: a subclass may compute anything.
        only: Class of the layers to change.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers(include_self=False):
            if not isinstance(layer, only):
                continue
            for name, function in _fused(layer).items():
                stack.enter_context(replaced(layer, name, function))
        yield


def deterministic_pooling(model):
    """A context in which max pooling runs fused where operations have to be deterministic.

    XLA refuses its own gradient of it then, on CPUs too.

    Args:
        model: As for `fused_layers`.
    """
    if not is_op_determinism_enabled():
        return contextlib.nullcontext()
    return fused_layers(model, only=keras.layers.MaxPooling2D)


def _fused(layer):
    """New methods of a layer, by name."""
    kind = type(layer)
    if REPLACED & vars(layer).keys():  # somebody else's
        return {}
    if kind is keras.layers.BatchNormalization and not (layer.synchronized or layer.renorm):
        return {"_moments": _moments(layer)}
    if call := rows.call_of(layer):
        return {"call": call}
    if getattr(layer, "data_format", None) != "channels_last":
        return {}
    if kind is keras.layers.MaxPooling2D and math.prod(layer.pool_size) <= MOST_PLACES:
        return {"call": _max_pool(layer)}
    if kind is keras.layers.Conv2D and layer.kernel_size == (1, 1) and layer.groups == 1:
        return {"convolution_op": _pointwise(layer)}
    return {}


# --- batch normalization


def _moments(layer):
    def moments(inputs, mask):
        if mask is not None:
            return type(layer)._moments(layer, inputs, mask)
        axes = layer._reduction_axes
        # The variance is the mean square less the squared mean. Of differences from the mean of a
        # sample: a mean far from zero would cancel all digits otherwise.
        sample = inputs[tuple(_sampled(inputs.shape, axes))]
        origin = tf.stop_gradient(tf.reduce_mean(sample, axes, keepdims=True))
        differences = inputs - origin
        mean = tf.reduce_mean(differences, axes)
        variance = tf.reduce_mean(tf.square(differences), axes) - tf.square(mean)
        # (A maximum would drop NaN on some devices.)
        variance = tf.where(variance < 0, tf.zeros_like(variance), variance)
        return mean + tf.reshape(origin, mean.shape), variance

    return moments


def _sampled(shape, axes):
    """Slices of the first examples, and a few places in each."""
    for axis, size in enumerate(shape):
        if axis not in axes:
            yield slice(None)
        elif axis == 0:
            yield slice(SAMPLED_EXAMPLES)
        elif size is None:
            yield slice(1)
        else:
            step = -(-size // SAMPLED_ALONG_AXIS)
            yield slice(step // 2, None, step)


# --- convolution


def _pointwise(layer):
    def product(inputs, kernel):
        kernel = tf.convert_to_tensor(kernel)
        products = tf.matmul(rows.to_rows(inputs), tf.reshape(kernel, kernel.shape[2:]))
        return rows.from_rows(products, inputs)

    def of_places(inputs, kernel):
        # Not a matrix product: XLA's compiler for GPUs dies of one behind a slice with strides.
        return tf.nn.conv2d(inputs[:, :: layer.strides[0], :: layer.strides[1]], kernel, 1, "VALID")

    return product if layer.strides == (1, 1) else of_places


# --- max pooling


def _max_pool(layer):
    def call(inputs):
        if None in inputs.shape[1:] or not inputs.dtype.is_floating:
            return type(layer).call(layer, inputs)
        return max_pool(inputs, layer.pool_size, layer.strides, layer.padding.lower())

    return call


def max_pool(inputs, pool_size, strides, padding):
    """The maximum of each window; its gradient goes to the first maximum in the window.

    Args:
        inputs: [batch, height, width, channels] float, all but the batch known when traced.
        pool_size: (height, width) of a window.
        strides: (height, width) from one window to the next.
        padding: "valid" or "same".

    Returns:
        [batch, height of the output, width of the output, channels], the dtype of `inputs`.
    """
    if padding == "same":
        pads = [
            max((-(-side // stride) - 1) * stride + size - side, 0)
            for side, size, stride in zip(inputs.shape[1:3], pool_size, strides, strict=True)
        ]
        pads = [[0, 0], *([pad // 2, pad - pad // 2] for pad in pads), [0, 0]]
        inputs = tf.pad(inputs, pads, constant_values=-math.inf)
    return _max_pool_valid(inputs, pool_size, strides)


def _max_pool_valid(inputs, pool_size, strides):
    sides = inputs.shape[1:3]
    counts = [
        (side - size) // stride + 1
        for side, size, stride in zip(sides, pool_size, strides, strict=True)
    ]
    places = [(i, j) for i in range(pool_size[0]) for j in range(pool_size[1])]

    def at(x, place):
        rows, columns = (
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(place, counts, strides, strict=True)
        )
        return x[:, rows, columns]

    @tf.custom_gradient
    def pool(x):
        most = at(x, places[0])
        winner = tf.zeros_like(most, tf.int8)
        is_nan = tf.math.is_nan(most)
        for index, place in enumerate(places[1:], 1):
            value = at(x, place)
            winner = tf.where(value > most, tf.constant(index, tf.int8), winner)
            most = tf.maximum(most, value)
            is_nan |= tf.math.is_nan(value)
        # XLA's maximum drops NaN on some devices. (Put into `most` at once, it made XLA break the
        # whole up into nine kernels.)
        most = tf.where(is_nan, tf.constant(math.nan, most.dtype), most)

        def gradient(upstream):
            return _to_winners(upstream, winner, sides, pool_size, strides)

        return most, gradient

    return pool(inputs)


def _to_winners(upstream, winner, sides, pool_size, strides):
    """The gradient of pooling: each window's, at the place of its maximum.

    Row `r * stride + p` of the input is place `p + d * stride` of window `r - d`. So in a shape of
    [batch, r, p, s, q, channels] the result is, for each pair of such d, the windows shifted by
    it, wherever their winner is the place that (p, q) is of them.

    Args:
        upstream: [batch, windows down, windows across, channels] float.
        winner: The same shape, int8; number of the place of the maximum, row by row.
        sides: Height and width of the input.
        pool_size: (height, width) of a window.
        strides: (height, width) from one window to the next.

    Returns:
        [batch, height, width, channels] float.
    """
    grid = [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
    shifts = [range(-(-size // stride)) for size, stride in zip(pool_size, strides, strict=True)]
    total = 0
    for down, across in itertools.product(*shifts):
        pads = [[0, 0], [down, 0], [across, 0], [0, 0]]
        for axis in (0, 1):
            pads[axis + 1][1] = grid[axis] - pads[axis + 1][0] - upstream.shape[axis + 1]
        rows, columns = (
            np.arange(stride) + shift * stride
            for shift, stride in zip((down, across), strides, strict=True)
        )
        place = rows[:, None] * pool_size[1] + columns
        place[rows >= pool_size[0]] = place[:, columns >= pool_size[1]] = -2  # of no window
        place = tf.constant(place[:, None, :, None], tf.int8)
        won = tf.equal(_spaced(tf.pad(winner, pads, constant_values=-1)), place)
        total += tf.where(won, _spaced(tf.pad(upstream, pads)), tf.zeros([], upstream.dtype))
    whole = [side * stride for side, stride in zip(grid, strides, strict=True)]
    total = tf.reshape(total, [-1, *whole, upstream.shape[3]])
    return total[:, : sides[0], : sides[1]]


def _spaced(x):
    """[batch, r, s, channels] -> [batch, r, 1, s, 1, channels]."""
    return x[:, :, tf.newaxis, :, tf.newaxis]
