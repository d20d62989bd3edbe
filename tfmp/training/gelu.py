"""GELU that keeps its input alone for the backward pass.

TensorFlow's gradient of its formula keeps two more arrays of that size, and has all of them read
again. `closed_gelu` puts one with its gradient written out in the place of what `keras.ops.gelu`
and `keras.activations.gelu` call, while a training step is traced. In half precision it computes
in float32 and rounds once.

References:
    Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv:1606.08415, section 2.
"""

import math

import tensorflow as tf
from keras.src.backend.tensorflow import nn  # `keras.ops` looks its functions up there

from tfmp.training.replaced import replaced_operation

# Of the approximation by tanh.
CUBIC = 0.044715

keras_gelu = nn.gelu


def closed_gelu():
    """A context in which Keras' GELU is the one of this module; for tracing."""
    return replaced_operation("gelu", _gelu)


def _gelu(x, approximate=True):
    x = tf.convert_to_tensor(x)
    return gelu(x, approximate) if x.dtype.is_floating else keras_gelu(x, approximate)


def gelu(x, approximate):
    """X times the share of a normal distribution that is below x.

    Args:
        x: Tensor of floats.
        approximate: Whether that share is by a formula with tanh, as in GPT-2's code.

    Returns:
        A tensor of x's shape and dtype.
    """
    wide = x.dtype if x.dtype.size > 2 else tf.float32
    share, slope = (_by_tanh, _tanh_slope) if approximate else (_by_erf, _density)

    @tf.custom_gradient
    def activate(x):
        def gradient(upstream):
            # Of the other side, though it is the same share: or XLA would keep the first one.
            x_wide = tf.cast(x, wide)
            above = share(x_wide, -1.0)
            of_x = 1 - above + x_wide * slope(x_wide, above)
            return tf.cast(tf.cast(upstream, wide) * of_x, x.dtype)

        x_wide = tf.cast(x, wide)
        return tf.cast(x_wide * share(x_wide, 1.0), x.dtype), gradient

    return activate(x)


def _by_erf(x, sign):
    """The share below x, or for a sign of -1 above it."""
    return 0.5 + 0.5 * tf.math.erf(x * (sign / math.sqrt(2)))


def _density(x, above):
    return tf.exp(-0.5 * tf.square(x)) / math.sqrt(2 * math.pi)


def _by_tanh(x, sign):
    """As `_by_erf`. (1 + tanh of something) / 2 is the logistic function of twice that."""
    return tf.sigmoid(x * (1 + CUBIC * tf.square(x)) * (sign * math.sqrt(8 / math.pi)))


def _tanh_slope(x, above):
    of_argument = math.sqrt(8 / math.pi) * (1 + 3 * CUBIC * tf.square(x))
    return above * (1 - above) * of_argument
