"""The vector that replicas add up: how it is put together and taken apart.

For a GPU, XLA cuts a concatenation of more than 128 tensors in two (its `VariadicOpSplitter`), of
which the second copies what the first has made. So the small tensors, of which models have most,
are put together before the large ones, which are then copied once.
"""

import math

import tensorflow as tf

from tfmp.training.barrier import barrier

# Tensors that are copied into the vector by themselves, and a few for what else is in it.
ALONE = 100


def join(parts, rest, weigh):
    """One vector of many: the parts from the largest to the smallest, then the rest.

    Args:
        parts: Tensors of one axis and one dtype, sizes known.
        rest: Likewise, and small; at least one.
        weigh: Function of a vector that changes each number by itself, for the parts. (Of each
            part, XLA would make it a kernel of its own.)
    """
    parts = [parts[i] for i in _order(parts)]
    large, small = (
        [weigh(tf.concat(some, 0))] if some else [] for some in (parts[:ALONE], parts[ALONE:])
    )
    # XLA would make one concatenation of two, were there nothing between them.
    (tail,) = barrier([tf.concat([*small, *rest], 0)])
    return tf.concat([*large, tail], 0)


def split(vector, like):
    """The parts of such a vector, without the rest: with the shapes and dtypes of others.

    Args:
        vector: As from `join`, without its `rest`.
        like: Tensors or variables of the sizes of its `parts`, in their order.
    """
    order = _order(like)
    found = dict(zip(order, unflatten(vector, [like[i] for i in order]), strict=True))
    return [found[i] for i in range(len(like))]


def unflatten(vector, like):
    """A vector's parts, as tensors of the shapes and dtypes of others, or of variables."""
    sizes = [math.prod(x.shape) for x in like]
    parts = tf.split(vector, sizes) if sizes else []
    return [
        tf.cast(tf.reshape(part, x.shape), x.dtype) for part, x in zip(parts, like, strict=True)
    ]


def _order(tensors):
    """Positions of the tensors, the largest first; of equal ones in their order."""
    return sorted(range(len(tensors)), key=lambda i: -math.prod(tensors[i].shape))
