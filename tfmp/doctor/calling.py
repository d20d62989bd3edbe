"""Calling a model on symbols, and noting which layer makes which operation."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.models.functional import Functional  # it has no public name
from keras.src.ops.operation import Operation  # the public one is another class
from tensorflow.python.framework import func_graph, ops  # no public way to hold a graph open

from tfmp.doctor.flow import HALF_TYPES


@dataclasses.dataclass(frozen=True, eq=False)
class Attempt:
    """A call of a model, or of a part of one, that was traced."""

    root: keras.Layer
    graph: func_graph.FuncGraph
    recorder: "Recorder"
    outputs: list[tf.Tensor]
    losses: list[tuple[keras.Layer, tf.Tensor]]


def attempt(model, root, specs) -> Attempt:
    graph, recorder = func_graph.FuncGraph("doctor"), Recorder()
    losses: list = []
    try:
        with graph.as_default(), recorder.recording(model):
            outputs = _tensors(_called(root, specs))
    finally:
        losses += taken_losses(root)
    return Attempt(root, graph, recorder, outputs, losses)


class Recorder:
    """Notes which operations were made within which call, and what constants were made of."""

    def __init__(self):
        self.spans: list[dict] = []
        self.originals: dict[int, tuple[tf.Operation, np.ndarray]] = {}
        # Where the model's own call begins, behind the casts of its inputs, by the graph's id.
        self.begins: dict[int, int] = {}
        self._open: list[dict] = []

    @contextlib.contextmanager
    def recording(self, model):
        """Notes while layers are called in this context, those of Keras by its one entry."""
        call, constant = Operation.__call__, ops._create_graph_constant

        def noted_call(operation, *args, **kwargs):
            if operation is model:
                self.begins[id(ops.get_default_graph())] = ops.get_default_graph().num_operations()
                return call(operation, *args, **kwargs)
            return self._noted(call, operation, args, kwargs)

        def noted_constant(value, dtype=None, *args, **kwargs):
            made = constant(value, dtype, *args, **kwargs)
            if made.dtype in HALF_TYPES:
                with contextlib.suppress(TypeError, ValueError):
                    self.originals[id(made.op)] = made.op, np.asarray(value, "float64")
            return made

        Operation.__call__, ops._create_graph_constant = noted_call, noted_constant
        try:
            yield
        finally:
            Operation.__call__, ops._create_graph_constant = call, constant
            self._open.clear()

    def _noted(self, call, operation, args, kwargs):
        graph = ops.get_default_graph()
        parent = self._open[-1] if self._open else None
        prefix = f"{parent['path']}/" if parent else ""
        span = {
            "called": operation,
            "path": prefix + operation.name,
            "parent": parent,
            "arguments": (args, kwargs),
            "inputs": _tensors([args, kwargs]),
            "graph": graph,
            "start": graph.num_operations(),
        }
        self.spans.append(span)
        self._open.append(span)
        try:
            result = call(operation, *args, **kwargs)
        finally:
            self._open.pop()
        return self._ended(span, result)

    def _ended(self, span, result):
        span["end"] = span["graph"].num_operations()
        span["outputs"] = _tensors(result)
        return result


def roots(model) -> list[keras.Layer]:
    """What is called: the model, or the models it holds where it has no `call`."""
    if is_graph(model) or type(model).call is not keras.Model.call:
        return [model]
    held = model._flatten_layers(include_self=False, recursive=False)
    return [root for layer in held if isinstance(layer, keras.Model) for root in roots(layer)]


def specs_of(root, inputs) -> Iterator[Any]:
    """Arguments to try, as nested `tf.TensorSpec`."""
    if inputs is not None:
        yield [keras.tree.map_structure(spec, inputs)]
        return
    if is_graph(root) and root.built:
        # (A Sequential model has no `input` before it was called.)
        given = root.inputs if isinstance(root, keras.Sequential) else [root._inputs_struct]
        yield keras.tree.map_structure(spec, given)
        return
    shapes = getattr(root, "_build_shapes_dict", None)
    if not (root.built and shapes):
        missing = "it is not built"
        yield missing
        return
    # Keras keeps the shapes of the first call, and not its dtypes.
    for dtype in ("float32", "int32", "int64"):
        yield [shaped(shape, dtype) for shape in shapes.values()]


def shaped(shape, dtype):
    """Specs of nested shapes."""
    if isinstance(shape, dict):
        return {key: shaped(value, dtype) for key, value in shape.items()}
    if shape and isinstance(shape[0], list | tuple):
        return type(shape)(shaped(value, dtype) for value in shape)
    return tf.TensorSpec(shape, dtype)


def spec(x):
    """The shape and dtype of an array, a tensor or a number."""
    if isinstance(x, tf.TensorSpec):
        return x
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    if isinstance(x, np.ndarray) and x.dtype.kind in "OSTU":  # text, of which Keras has no dtype
        return tf.TensorSpec(x.shape, tf.convert_to_tensor(x).dtype)
    return tf.TensorSpec(x.shape, tf.as_dtype(keras.backend.standardize_dtype(x.dtype)))


def is_graph(layer: keras.Layer) -> bool:
    """Whether it only passes on what its layers compute: a functional or Sequential model."""
    kinds = (keras.Sequential, Functional)
    return isinstance(layer, kinds) and type(layer).call in [kind.call for kind in kinds]


def _called(root, specs):
    if isinstance(specs, str):
        raise ValueError(specs)
    arguments = tf.nest.map_structure(lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), specs)
    return root(*arguments, training=True) if root._call_has_training_arg else root(*arguments)


def _tensors(structure) -> list[tf.Tensor]:
    return [x for x in keras.tree.flatten(structure) if tf.is_tensor(x) and hasattr(x, "op")]


def taken_losses(root) -> list[tuple[keras.Layer, tf.Tensor]]:
    """The losses that layers have added, which would stay with them as symbols of the graph."""
    found = []
    for layer in root._flatten_layers():
        found += [(layer, x) for x in layer._losses if hasattr(x, "graph")]
        layer._losses.clear()
        layer._loss_ids.clear()
    return found


@contextlib.contextmanager
def standing_in(optimizer, scale, **methods):
    """A context in which an optimizer has other methods, and a constant loss scale.

    Args:
        optimizer: A Keras optimizer.
        scale: What a `train_step` reads as the scale, also of an optimizer that `fit` would build.
        **methods: Functions without self, by name.
    """
    own: dict = dict(methods)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        own["dynamic_scale"] = keras.Variable(scale, trainable=False, dtype="float32")
    before = {name: vars(optimizer)[name] for name in own if name in vars(optimizer)}
    # Not by setattr: Keras would track them.
    optimizer.__dict__.update(own)
    try:
        yield
    finally:
        for name, stand_in in own.items():
            # (A `train_step` that builds its optimizer has put its own in their place.)
            if vars(optimizer).get(name) is stand_in:
                del optimizer.__dict__[name]
        optimizer.__dict__.update(before)
