"""The vectors that replicas add up: how they are put together, added up and taken apart.

Within XLA programs there are several, from the last gradients, which the backward pass has first,
to the first ones: while NCCL adds up one of them, the backward pass goes on.

References:
    Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
    arXiv:2006.15704, sections 3.2.2 and 3.2.3.
"""

import math

import tensorflow as tf

from tfmp.training.barrier import barrier

# Numbers of a vector of several: 32 MiB of float32, a large message for NCCL.
SIZE = 2**23
# Parts of a vector of several. XLA puts what makes the parts into the kernel that concatenates them
# as long as that takes 96 operands at most, and for a GPU cuts concatenations of more than 128 in
# two (its `VariadicOpSplitter`), of which the second copies what the first has made.
PARTS = 64


def join(parts, rest, in_one):
    """One vector of many parts, or several.

    Args:
        parts: Tensors of one axis and one dtype, sizes known.
        rest: Likewise, and few; they are the end of the last vector.
        in_one: Whether it is to be one vector.

    Returns:
        List of tensors of one axis.
    """
    groups = [[parts[i] for i in group] for group in _groups(parts, in_one)]
    groups[-1] += rest
    return [tf.concat(group, 0) for group in groups]


def add_up(vectors, function):
    """The sums of vectors over the replicas, one behind the other.

    Args:
        vectors: List of tensors.
        function: Function of a tensor and its number, from 0: the sum over the replicas.

    Returns:
        List of tensors.
    """
    sums: list[tf.Tensor] = []
    for number, vector in enumerate(vectors):
        if sums:
            vector, sums[-1] = barrier([vector, sums[-1]])
        sums.append(function(vector, number))
    return sums


def split(vectors, like):
    """The parts that were joined, with the shapes and dtypes of others.

    Args:
        vectors: As from `join`.
        like: Tensors or variables of the sizes of its `parts`, in their order.
    """
    groups = _groups(like, len(vectors) == 1)
    found = [
        pair
        for vector, group in zip(vectors, groups, strict=True)
        for pair in zip(group, unflatten(vector, [like[i] for i in group]), strict=True)
    ]
    return [part for _, part in sorted(found, key=lambda pair: pair[0])]


def unflatten(vector, like):
    """What a vector begins with, as tensors of the shapes and dtypes of others, or of variables."""
    sizes = [math.prod(x.shape) for x in like]
    parts = tf.split(vector, [*sizes, -1])[:-1]
    return [
        tf.cast(tf.reshape(part, x.shape), x.dtype) for part, x in zip(parts, like, strict=True)
    ]


def _groups(tensors, in_one):
    """Positions of the tensors that are a vector, from the last to the first: lists of them."""
    groups: list[list[int]] = [[]]
    size = 0
    for position in reversed(range(len(tensors))):
        if not in_one and (size >= SIZE or len(groups[-1]) == PARTS):
            groups.append([])
            size = 0
        groups[-1].append(position)
        size += math.prod(tensors[position].shape)
    return groups
