"""What XLA may not reorder, merge or compute only once."""

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier  # no public one
from tensorflow.python.ops import control_flow_util  # it neither


def barrier(tensors):
    """The same tensors, as a list, all of them computed before any of them is used."""
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return list(xla_optimization_barrier(tensors))
    with tf.control_dependencies(tensors):
        return [tf.identity(x) for x in tensors]


def kept(x):
    """A tensor that XLA computes once and keeps, rather than in each kernel that reads it."""

    @tf.custom_gradient
    def keep(x):
        return barrier([x])[0], lambda upstream: upstream

    return keep(x)
