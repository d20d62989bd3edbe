"""Attention in parts: a training step whose memory grows with the context, and not its square.

Keras' TensorFlow backend has no fused attention. It keeps the weights of all pairs of tokens for
the backward pass, in float32 and again in the computing dtype: at 1,024 tokens and 12 heads 72 MiB
an example and layer. Here the queries are taken some at a time, and of their weights nothing is
kept: the backward pass computes them once more. Of a causal mask the keys behind the last query of
a part are left out altogether, which saves nearly half of the products and pays for the others.
Where cuDNN computes attention (`tfmp.training.cudnn_attention`) that saves as much, and is faster.

References:
    Rabe and Staats 2021, Self-attention Does Not Need O(n^2) Memory, arXiv:2112.05682, section 3.
"""

import contextlib

import keras
import tensorflow as tf
from keras.src.ops.nn import DotProductAttention  # it has no public name

from tfmp.models import flops
from tfmp.training import cudnn_attention
from tfmp.training.barrier import barrier
from tfmp.training.replaced import replaced


@contextlib.contextmanager
def in_parts(model, size):
    """A context in which the attention of a model computes in parts; the results are the same.

    Args:
        model: A Keras model; attention is found in it and in the functional models in it.
        size: Queries of a part; 0: as Keras does.
    """
    with contextlib.ExitStack() as stack:
        for node in flops.products(model) if size else ():
            if isinstance(node.operation, DotProductAttention):
                call = _call(node.operation, size)
                stack.enter_context(replaced(node.operation, "call", call))
        yield


def _call(operation, size):
    def call(query, key, value, bias=None, mask=None, scale=None):
        as_keras_does = bias is not None or scale is None or query.shape[1] is None
        # Where cuDNN computes it, it keeps nothing of the pairs of tokens anyhow.
        if as_keras_does or cudnn_attention.takes(query, key, value, bias, mask, scale):
            return type(operation).call(operation, query, key, value, bias, mask, scale)
        return attention(
            query * tf.cast(scale, query.dtype),
            key,
            value,
            causal=operation.is_causal,
            mask=mask,
            size=size,
        )

    return call


def attention(queries, keys, values, *, causal, mask=None, size):
    """What Keras' `dot_product_attention` gives of divided queries, computed in parts.

    Args:
        queries: [batch, queries, heads, size of a head] float, divided already.
        keys: [batch, keys, heads, size of a head], the same dtype.
        values: Likewise.
        causal: Whether query i sees only keys 0 to i.
        mask: bool, broadcast to [batch, heads, queries, keys]: whether a query may see a key.
        size: Queries of a part.

    Returns:
        [batch, queries, heads, size of a head], the same dtype.
    """
    parts = [
        _Part(start, min(start + size, queries.shape[1]), causal)
        for start in range(0, queries.shape[1], size)
    ]

    @tf.custom_gradient
    def in_order(queries, keys, values):
        outputs: list = []
        for part in parts:
            mine = part.of(queries)
            if outputs:
                # One part after the other, or all of them would need memory at once.
                mine, outputs[-1] = barrier([mine, outputs[-1]])
            outputs.append(part.attend(mine, keys, values, mask))

        def gradients(upstream):
            return _gradients(parts, (queries, keys, values), upstream, mask)

        return tf.concat(outputs, 1), gradients

    return in_order(queries, keys, values)


def _gradients(parts, inputs, upstream, mask):
    """Gradients of queries, keys and values; those of the latter two are summed in float32."""
    queries, keys, values = inputs
    of_queries: list = []
    sums = [tf.zeros(tf.shape(x), tf.float32) for x in (keys, values)]
    for part in parts:
        # Else XLA would find that this was computed before, and keep that.
        mine, above, *rest = barrier(
            [part.of(queries), part.of(upstream), keys, values, *of_queries[-1:], *sums]
        )
        if of_queries:
            of_queries[-1] = rest[2]
        sums = rest[-2:]
        with tf.GradientTape() as tape:
            taken = [mine, *rest[:2]]
            tape.watch(taken)
            outputs = part.attend(*taken, mask)
        found, *others = tape.gradient(outputs, taken, above)
        of_queries.append(found)
        sums = [x + tf.cast(y, tf.float32) for x, y in zip(sums, others, strict=True)]
    return [tf.concat(of_queries, 1), *(tf.cast(x, keys.dtype) for x in sums)]


class _Part:
    """Queries from `start` to before `end`."""

    def __init__(self, start, end, causal):
        self.start, self.end, self.causal = start, end, causal

    def of(self, x):
        """The part of what has a place for each query, along axis 1."""
        return x[:, self.start : self.end]

    def attend(self, queries, keys, values, mask):
        """Keras' attention of these queries."""
        seen = min(self.end, keys.shape[1]) if self.causal else keys.shape[1]
        if mask is not None:
            mask = _along(_along(mask, -2, self.start, self.end), -1, 0, seen)
        if self.causal:
            rows, columns = tf.range(self.start, self.end)[:, tf.newaxis], tf.range(seen)
            before = columns <= rows
            mask = before if mask is None else tf.logical_and(before, mask)
        return keras.ops.dot_product_attention(
            queries, keys[:, :seen], values[:, :seen], mask=mask, scale=1.0
        )


def _along(mask, axis, start, end):
    """A slice of a mask's axis, unless that has one place for all."""
    if mask.shape.rank < -axis or mask.shape[axis] == 1:
        return mask
    return mask[..., start:end, :] if axis == -2 else mask[..., start:end]
