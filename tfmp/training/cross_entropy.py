"""Cross entropy and accuracy of integer labels that read the logits as few times as they can.

With a vocabulary of 50,000 that counts. With TensorFlow's cross entropy XLA sums the loss over all
classes of one-hot labels, in the kernel that computes the gradient. `closed_cross_entropy` puts one
in its place, while a training step is traced, that takes the label's logit alone and has its
gradient written out: probabilities less the one-hot labels. Keras' accuracy looks for the place of
the largest logit; `is_top_one` looks whether one is in the label's way.
"""

import tensorflow as tf
from keras.src.backend.tensorflow import nn  # `keras.ops` looks its functions up there

from tfmp.training.replaced import replaced_operation

# Classes from which on it is used. It was measured with 50,304.
MANY = 10_000

keras_cross_entropy = nn.sparse_categorical_crossentropy


def closed_cross_entropy():
    """A context in which Keras' cross entropy of integer labels, of many classes, is this one.

    For tracing.
    """
    return replaced_operation("sparse_categorical_crossentropy", _cross_entropy)


def _cross_entropy(target, output, from_logits=False, axis=-1):
    labels, logits = tf.convert_to_tensor(target), tf.convert_to_tensor(output)
    rank = logits.shape.rank
    if rank and labels.shape.rank == rank and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, -1)
    fits = rank and labels.shape.rank == rank - 1 and (logits.shape[-1] or 0) >= MANY
    fits = fits and labels.shape.is_compatible_with(logits.shape[:-1])
    if not fits or not from_logits or axis not in (-1, rank - 1):
        return keras_cross_entropy(target, output, from_logits, axis)  # or its error
    return cross_entropy(labels, logits)


def cross_entropy(labels, logits):
    """Minus the logarithm of the label's probability.

    In half precision it is computed in float32 and rounded once. The loss and the gradient of a
    label that is no class are NaN, as TensorFlow's on a GPU.

    Args:
        labels: [...] integers, or whole numbers of another dtype.
        logits: [..., classes] floats; the number of classes known.

    Returns:
        [...] of the logits' dtype, in nats.
    """
    wide = logits.dtype if logits.dtype.size > 2 else tf.float32
    place, known = _places(labels, logits.shape[-1])

    def log_sum(x):
        return tf.where(known, tf.reduce_logsumexp(x, -1), tf.cast(float("nan"), wide))

    @tf.custom_gradient
    def loss(logits):
        def gradient(upstream):
            # Of the logits once more, so that it has a gradient, too; to XLA it is the same sum.
            x = tf.cast(logits, wide)
            slope = tf.exp(x - log_sum(x)[..., None]) - tf.one_hot(place, x.shape[-1], dtype=wide)
            return tf.cast(tf.cast(upstream, wide)[..., None] * slope, logits.dtype)

        x = tf.cast(logits, wide)
        return tf.cast(log_sum(x) - _at(place, x), logits.dtype), gradient

    return loss(logits)


def is_top_one(labels, logits):
    """Whether each label's logit is the largest, the first one of several that are.

    The function of a `keras.metrics.MeanMetricWrapper` that is
    `keras.metrics.SparseCategoricalAccuracy`, where no logit is NaN.

    Args:
        labels: [...] integers, or whole numbers of another dtype; of those that are no class none
            is the largest.
        logits: [..., classes] floats; the number of classes known. With a NaN among them none is
            the largest.

    Returns:
        [...] float32, 0 or 1.
    """
    place, known = _places(labels, logits.shape[-1])
    own = _at(place, logits)[..., None]
    behind = tf.range(logits.shape[-1]) >= place[..., None]
    first = tf.reduce_all((own > logits) | ((own == logits) & behind), -1)
    return tf.cast(first & known, tf.float32)


def _places(labels, classes):
    """The labels as int32, the next class for those that are none; and whether each is a class."""
    labels = tf.cast(labels, tf.int64)
    known = (labels >= 0) & (labels < classes)
    return tf.cast(tf.clip_by_value(labels, 0, classes - 1), tf.int32), known


def _at(place, x):
    """Of each vector the number at a place: [...] for places [...] and x [..., classes]."""
    return tf.gather(x, place, batch_dims=place.shape.rank)
