"""Layers on sequences that compute on one matrix of all positions.

While a step is traced for XLA, `tfmp.training.fused` puts these in the place of Keras' own `call`:

- A dense layer is one matrix product, with its bias. Keras' is one for each example: its backward
  pass writes a gradient of the weights for each example, and adds them up. The gradient of a bias
  with positions is a product, too: see `add_to_each`.
- LayerNormalization and Add. On [batch, positions, features] XLA may choose a layout in which the
  examples are neighbors in the memory, and transposes what comes from and goes to a product.
- LayerNormalization has its gradient written out: TensorFlow's takes more passes.
"""

import functools

import keras
import tensorflow as tf

from tfmp.training.barrier import kept

# EinsumDense as a dense layer whose bias may differ from position to position.
POSITIONWISE = "btp,pd->btd"

# Rows of ones in the product that adds up examples: one alone XLA takes for a sum again.
ROWS_OF_ONES = 8


def call_of(layer):
    """A layer's `call` by rows, or None where it has none.

    Args:
        layer: A Keras layer.
    """
    kind = type(layer)
    if _is_dense(layer):
        return _dense(layer)
    if kind is keras.layers.LayerNormalization and not layer.rms_scaling:
        return _normalization(layer)
    return _add(layer) if kind is keras.layers.Add else None


def to_rows(x):
    """All axes before the last one made one.

    Args:
        x: Tensor whose last axis is known when traced.
    """
    return tf.reshape(x, [-1, x.shape[-1]])


def from_rows(rows, like):
    """Rows with the axes that a tensor has before its last one.

    Args:
        rows: [rows, features].
        like: Tensor of as many rows.
    """
    outputs = tf.reshape(rows, tf.concat([tf.shape(like)[:-1], rows.shape[1:]], 0))
    return tf.ensure_shape(outputs, [*like.shape[:-1], rows.shape[1]])


def _is_dense(layer):
    """Whether a layer multiplies the last axis alone, by weights that are not quantized."""
    kind = type(layer)
    by_position = kind is keras.layers.EinsumDense and layer.equation == POSITIONWISE
    return (kind is keras.layers.Dense or by_position) and not layer.dtype_policy.quantization_mode


def _dense(layer):
    """`call` of a dense layer, with all axes before the last one made one for the product."""

    def call(inputs, training=None):
        if len(inputs.shape) < 3:
            return type(layer).call(layer, inputs, training=training)
        rows = keras.ops.matmul(to_rows(inputs), layer.kernel)
        bias = layer.bias
        if bias is not None and len(bias.shape) == 1:
            rows, bias = keras.ops.add(rows, bias), None
        outputs = from_rows(rows, inputs)
        if bias is not None:
            outputs = add_to_each(outputs, tf.convert_to_tensor(bias))
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


def add_to_each(x, values):
    """Adds the same values to each example.

    Their gradient, a sum over the examples, is a product with ones. For a plain sum XLA lays the
    examples out as neighbors in the memory, here and in every sequence that is added to this one,
    and transposes what comes from and goes to other products.

    Args:
        x: [batch, positions, features] float.
        values: [positions, features], of x's dtype.

    Returns:
        [batch, positions, features].
    """

    @tf.custom_gradient
    def add(x, values):
        def gradients(upstream):
            examples = tf.reshape(upstream, [tf.shape(upstream)[0], -1])
            ones = tf.ones([ROWS_OF_ONES, tf.shape(examples)[0]], upstream.dtype)
            return upstream, tf.reshape(tf.matmul(ones, examples)[0], values.shape)

        return x + values, gradients

    return add(x, values)


def _normalization(layer):
    """`call` of a layer that normalizes the last axis, with all axes before it made one."""

    def call(inputs):
        inputs = tf.convert_to_tensor(inputs)
        size, last = inputs.shape[-1], len(inputs.shape) - 1
        axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
        if axes not in ([last], [-1]) or not inputs.dtype.is_floating:
            return type(layer).call(layer, inputs)
        gamma, beta = (
            tf.convert_to_tensor(weight) if weight is not None else tf.fill([size], value)
            for weight, value in ((layer.gamma, 1.0), (layer.beta, 0.0))
        )
        rows = normalize_rows(to_rows(inputs), gamma, beta, layer.epsilon)
        return tf.cast(from_rows(rows, inputs), layer.compute_dtype)

    return call


def normalize_rows(rows, gamma, beta, epsilon):
    """Layer normalization of each row, computed in float32 or wider.

    Its gradient is written out, which takes two readings of the rows; the one that TensorFlow makes
    of the formula takes several.

    Args:
        rows: [rows, features] float.
        gamma: [features] float, factors of the normalized rows.
        beta: [features] float, what is added to them.
        epsilon: Added to the variance.

    Returns:
        [rows, features], the dtype of `rows`.

    References:
        Ba et al. 2016, Layer Normalization, arXiv:1607.06450, equation 4.
    """
    wide = tf.float64 if rows.dtype == tf.float64 else tf.float32

    def statistics(x):
        mean = tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), -1, keepdims=True)
        return mean, tf.math.rsqrt(variance + epsilon)

    @tf.custom_gradient
    def normalize(rows, gamma, beta):
        def gradients(upstream):
            # Computed once more, so that it has a gradient of its own; XLA does it once.
            x = tf.cast(rows, wide)
            mean, inverse = statistics(x)
            normalized = (x - mean) * inverse
            upstream = tf.cast(upstream, wide)
            of_x = upstream * tf.cast(gamma, wide)
            along = normalized * tf.reduce_mean(of_x * normalized, -1, keepdims=True)
            of_rows = inverse * (of_x - tf.reduce_mean(of_x, -1, keepdims=True) - along)
            # With a sum over each row in it, XLA would write this product before it adds it up.
            of_gamma = upstream * ((x - kept(mean)) * kept(inverse))
            return (
                tf.cast(of_rows, rows.dtype),
                tf.cast(tf.reduce_sum(of_gamma, 0), gamma.dtype),
                tf.cast(tf.reduce_sum(upstream, 0), beta.dtype),
            )

        x = tf.cast(rows, wide)
        mean, inverse = statistics(x)
        x = (x - mean) * inverse
        return tf.cast(x * tf.cast(gamma, wide) + tf.cast(beta, wide), rows.dtype), gradients

    return normalize(rows, gamma, beta)


def _add(layer):
    """`call` of a layer that adds sequences of one shape, as matrices of all their positions."""

    def call(inputs):
        shapes = {tuple(x.shape) for x in inputs}
        first = inputs[0]
        if len(shapes) > 1 or len(first.shape) != 3 or first.shape[-1] is None:
            return type(layer).call(layer, inputs)
        return from_rows(functools.reduce(tf.add, map(to_rows, inputs)), first)

    return call
