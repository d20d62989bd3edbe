"""Recomputing activations in the backward pass instead of keeping them.

A functional model is cut where a single tensor, masks apart, is all that the layers behind need of
those before it, as between two residual blocks. Between two cuts only the first tensor is kept; the
backward pass computes the others once more. Dropout draws the same masks again, and
BatchNormalization changes its statistics once. XLA for CPUs undoes it: there it saves nothing.

References:
    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
"""

import contextlib
import dataclasses
import itertools
import math

import keras
import tensorflow as tf
from keras.src.ops.nn import DotProductAttention  # it has no public name

from tfmp.training.barrier import barrier
from tfmp.training.replaced import replaced


@dataclasses.dataclass(frozen=True)
class Segment:
    """Layers in a row that take one floating tensor and give one; masks and integers don't count.

    Attributes:
        nodes: Keras' nodes, in the order in which they run.
        start: The `keras.KerasTensor` that they take.
        end: The one that they give.
    """

    nodes: tuple
    start: keras.KerasTensor
    end: keras.KerasTensor

    @property
    def inner_bytes(self):
        """Bytes per example of all that the layers compute but the last tensor."""
        return sum(map(_all_bytes, self.nodes)) - _bytes(self.end)


def can_recompute(model):
    """Whether the model has layers whose activations `recomputing` would not keep.

    Args:
        model: A built Keras model.
    """
    return any(_plan(graph) for graph in _graphs(model))


@contextlib.contextmanager
def recomputing(model):
    """A context in which a model's layers keep few activations; for functions that XLA compiles.

    Args:
        model: A Keras model. The functional and Sequential models in it are cut, the outermost of
            them where they are nested; other layers run as they are.
    """
    with contextlib.ExitStack() as stack:
        for graph in _graphs(model):
            if plan := _plan(graph):
                run = _run_through_graph(graph, plan)
                stack.enter_context(replaced(graph, "_run_through_graph", run))
        yield


def _graphs(layer):
    """The outermost functional models in a layer."""
    if graph := _graph(layer):
        yield graph
    else:
        for part in layer._layers:
            yield from _graphs(part)


def _graph(operation):
    """The functional model that an operation is, or that a Sequential one has inside; or None."""
    operation = getattr(operation, "_functional", None) or operation
    return operation if hasattr(operation, "_run_through_graph") else None


# --- where to cut


def _plan(graph):
    """Segments to be recomputed, as a dict from each one's first node to it.

    Kept are all segments' first tensors, and for a time all of one segment. Longer segments keep
    fewer of the former and more of the latter; the lengths with the least sum are taken.
    """
    atoms = _atoms(graph)
    total = sum(atom.inner_bytes + _bytes(atom.end) for atom in atoms)
    plans = [_joined(atoms, total / parts) for parts in range(1, len(atoms) + 1)]
    best: list[Segment] = min(plans, key=_peak, default=[])
    # What the last one computes is needed at once.
    return {id(x.nodes[0]): x for x in best[:-1] if x.inner_bytes}


def _peak(segments):
    return sum(_bytes(x.start) for x in segments) + max(x.inner_bytes for x in segments)


def _joined(atoms, budget):
    """Neighbors made one as long as the bytes inside are within the budget."""
    segments: list[Segment] = []
    for atom in atoms:
        if segments and segments[-1].end is atom.start:
            longer = Segment(segments[-1].nodes + atom.nodes, segments[-1].start, atom.end)
            if longer.inner_bytes <= budget:
                segments[-1] = longer
                continue
        segments.append(atom)
    return segments


def _atoms(graph):
    """The shortest segments of a functional model."""
    nodes = _nodes(graph)
    last_use = {id(x): len(nodes) for x in graph.outputs}
    for index, node in enumerate(nodes):
        for x in node.input_tensors:
            last_use[id(x)] = max(last_use.get(id(x), 0), index)
    alive = {id(x): x for x in graph.inputs if _counts(x)}
    start, begin, atoms = _only(alive), 0, []
    for index, node in enumerate(nodes):
        alive |= {id(x): x for x in node.outputs if _counts(x)}
        alive = {key: x for key, x in alive.items() if last_use.get(key, -1) > index}
        end = _only(alive)
        if end is None:
            continue
        if start is not None and end is not start:
            atoms.append(Segment(tuple(nodes[begin : index + 1]), start, end))
        start, begin = end, index + 1
    return atoms


def _counts(x):
    return keras.backend.is_float_dtype(x.dtype)


def _nodes(graph):
    """The nodes in the order in which Keras runs them."""
    by_depth = sorted(graph._nodes_by_depth.items(), reverse=True)
    nodes = itertools.chain.from_iterable(nodes for _, nodes in by_depth)
    return [node for node in nodes if node.operation and not node.is_input]


def _only(tensors):
    return next(iter(tensors.values())) if len(tensors) == 1 else None


def _all_bytes(node):
    """Bytes per example of what a node gives and, in a layer made of layers, of what these give.

    Where they are not a functional model they are taken to give as much as the whole, each.
    """
    own = sum(map(_bytes, node.outputs)) + _weights_bytes(node)
    if graph := _graph(node.operation):
        return sum(map(_all_bytes, _nodes(graph)))
    if not isinstance(node.operation, keras.Layer):
        return own
    parts = node.operation._flatten_layers(include_self=False)
    return own * (1 + sum(not part._layers for part in parts))


def _weights_bytes(node):
    """Bytes per example of attention's weights: in float32, and in the computing dtype."""
    if not isinstance(node.operation, DotProductAttention):
        return 0
    (_, queries, heads, _), (_, keys, *_) = (x.shape for x in node.input_tensors[:2])
    size = tf.as_dtype(keras.backend.standardize_dtype(node.outputs[0].dtype)).size
    return heads * queries * keys * (4 + size)


def _bytes(x):
    size = tf.as_dtype(keras.backend.standardize_dtype(x.dtype)).size
    return math.prod(side or 1 for side in x.shape[1:]) * size


# --- running


def _run_through_graph(graph, plan):
    """Keras' method of a functional model, with the segments of a plan recomputed."""
    nodes = _nodes(graph)

    def run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=None):
        if call_fn is not None:
            return type(graph)._run_through_graph(graph, inputs, operation_fn, call_fn)
        values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        index = 0
        while index < len(nodes):
            segment = plan.get(id(nodes[index]))
            if segment is None:
                _run([nodes[index]], values, operation_fn)
                index += 1
            else:
                _run_recomputed(segment, values, operation_fn)
                index += len(segment.nodes)
        outputs = [values[id(x)] for x in graph.outputs]
        return keras.tree.pack_sequence_as(graph._outputs_struct, outputs)

    return run_through_graph


def _run(nodes, values, operation_fn):
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        outputs = operation_fn(node.operation)(*args, **kwargs)
        values.update(zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=True))


def _run_recomputed(segment, values, operation_fn):
    """Runs a segment; its updates of variables and its losses take effect once."""
    variables = {id(v): v for node in segment.nodes for v in _variables(node.operation)}.values()
    weights = [v for v in variables if v.trainable]
    # Values and no variables: the second run draws the masks of the first.
    state = [(v, tf.convert_to_tensor(v._value)) for v in variables if not v.trainable]
    others = _without_floats(values)
    first_run: list = []

    def run(x, *tensors):
        pairs = [*state, *zip(weights, tensors, strict=True)]
        scope = keras.StatelessScope(pairs, collect_losses=True)
        before = [scope.get_current_value(v) for v, _ in state]
        known = {**others, id(segment.start): x}
        with scope:
            _run(segment.nodes, known, operation_fn)
        after = [scope.get_current_value(v) for v, _ in state]
        first_run[:] = first_run or [before, after, known]
        return [known[id(segment.end)], *map(tf.convert_to_tensor, scope.losses)]

    tensors = [values[id(segment.start)], *(tf.convert_to_tensor(v._value) for v in weights)]
    end, *losses = _run_twice(run, tensors)
    before, after, known = first_run
    values.update(_without_floats(known))
    values[id(segment.end)] = end
    for (variable, _), old, new in zip(state, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    layers = [x.operation for x in segment.nodes if isinstance(x.operation, keras.Layer)]
    for loss in losses:
        layers[0].add_loss(loss)


def _run_twice(run, tensors):
    """`run(*tensors)`: once now, and once more when its gradients are asked for."""

    @tf.custom_gradient
    def function(*tensors):
        def gradients(*upstream):
            # Else XLA would find that both runs compute the same, and keep the first one's; and
            # the second could come before its time.
            later = barrier([*tensors, *upstream])
            inputs, upstream = later[: len(tensors)], later[len(tensors) :]
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = run(*inputs)
            found = tape.gradient(
                outputs, inputs, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return [tf.convert_to_tensor(gradient) for gradient in found]

        return run(*tensors), gradients

    return function(*tensors)


def _without_floats(values):
    return {key: x for key, x in values.items() if x is not None and not x.dtype.is_floating}


def _variables(operation):
    return operation.variables if isinstance(operation, keras.Layer) else []
