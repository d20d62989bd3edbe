"""What the layers of a model do: its operations in a graph, each with the layer that made it.

The model is called once on symbols, in training, as `fit` would trace it: nothing is computed, no
weight is read. So the rules see what any layer does, Keras' own or not, and its dtypes as they are
in force.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.ops.operation import Operation  # the public one is another class
from tensorflow.python.framework import func_graph  # no public way to ask whose a tensor is

from tfmp.doctor import flow
from tfmp.doctor.calling import Attempt, attempt, is_graph, roots, specs_of
from tfmp.policies.choice import HALF


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer, or of an operation such as `a + b` in a functional model.

    Attributes:
        called: The layer or operation.
        path: Its path by the layers that called it, for what no layer holds.
        parent: The call that made this one; None: the model itself.
        arguments: What it was called with: (positional, by name).
        inputs: Tensors among them, cast to what it computes in.
        outputs: Tensors that it returned.
        operations: Operations that it made itself, without those of layers it called.
    """

    called: Operation
    path: str
    parent: "Call | None"
    arguments: tuple[tuple, dict]
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    operations: tuple[tf.Operation, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A model's operations.

    Attributes:
        operations: All of them, in the order in which they were made.
        calls: The calls of layers, callers first.
        owners: The call that made an operation, by the operation's id.
        outputs: Tensors that the model returns.
        parts: Tensors that parts of the model return, where it was traced in parts: a model
            without a `call`, such as a GAN, or one that can't be called on symbols.
        losses: What layers added to the loss, by `add_loss` or an activity regularizer: pairs of
            layer and tensor.
        variables: The Keras variables that an operation reads, by the operation's id.
        originals: The values that constants were made of, before they became half, and those of
            tensors held by layers, by the operation's id.
        failures: Why parts of the model could not be traced.
        guessed: Whether the dtypes of its inputs are not known; it was called with float32.
    """

    operations: tuple[tf.Operation, ...]
    calls: tuple[Call, ...]
    owners: Mapping[int, Call]
    outputs: tuple[tf.Tensor, ...]
    parts: tuple[tf.Tensor, ...]
    losses: tuple[tuple[keras.Layer, tf.Tensor], ...]
    variables: Mapping[int, tuple[keras.Variable, ...]]
    originals: Mapping[int, np.ndarray]
    failures: tuple[str, ...] = ()
    guessed: bool = False


def trace(model: keras.Model, inputs=None) -> Trace:
    """Traces a built model; one without a `call`, such as a GAN, by the models that it holds.

    Args:
        model: A built model; it stays as it is.
        inputs: A batch, or tensors of its shapes and dtypes; None: what the model declares.
    """
    taken: list[Attempt] = []
    failures: list[str] = []
    left = roots(model)
    while left:
        root = left.pop(0)
        mistakes: list[str] = []
        for specs in specs_of(root, inputs if root is model else None):
            try:
                taken.append(attempt(model, root, specs))
            except Exception as error:  # whatever a model of the user's raises
                mistakes.append(f"{root.name}: {type(error).__name__}: {error}".partition("\n")[0])
            else:
                break
        else:
            failures += mistakes[:1]
            # Its layers may be told alone.
            held = root._flatten_layers(include_self=False, recursive=False)
            left += [layer for layer in held if layer.built]
    declared = inputs is not None or all(map(is_graph, roots(model)))
    return combined(model, taken, failures, guessed=bool(failures) or not declared)


def combined(model, taken, failures=(), guessed=False) -> Trace:
    """What attempts at a model, or at parts of it, come to.

    Args:
        model: The model.
        taken: What was traced.
        failures: Why parts of it could not be.
        guessed: Whether the dtypes of its inputs are not known.
    """
    operations: list[tf.Operation] = []
    owners: dict[int, dict] = {}
    spans: list[dict] = []
    originals: dict[int, np.ndarray] = {}
    for done in taken:
        recorder = done.recorder
        spans += recorder.spans
        owners |= _owners(done.graph, recorder)
        for operation in done.graph.get_operations():
            operations += _within(operation, owners)
        originals |= {key: value for key, (_, value) in recorder.originals.items()}
        originals |= _captured_values(done.graph)
    by_span: dict[int, list] = {id(span): [] for span in spans}
    for operation in operations:
        if id(operation) in owners:
            by_span[id(owners[id(operation)])].append(operation)
    calls: dict[int, Call] = {}
    for span in spans:
        calls[id(span)] = Call(
            span["called"],
            span["path"],
            calls.get(id(span["parent"])),
            span["arguments"],
            tuple(span["inputs"]),
            tuple(span["outputs"]),
            tuple(by_span[id(span)]),
        )
    return Trace(
        operations=tuple(operations),
        calls=tuple(calls.values()),
        owners={key: calls[id(span)] for key, span in owners.items()},
        outputs=tuple(x for attempt in taken if attempt.root is model for x in attempt.outputs),
        parts=tuple(x for attempt in taken if attempt.root is not model for x in attempt.outputs),
        losses=tuple(x for attempt in taken for x in attempt.losses),
        variables=_read(operations, model),
        originals=originals,
        failures=tuple(failures),
        guessed=guessed,
    )


def _owners(graph, recorder) -> dict[int, dict]:
    """The innermost span that made an operation, by the operation's id."""
    owners: dict[int, dict] = {}
    lists = {id(graph): graph.get_operations()}
    for span in recorder.spans:
        made = lists.setdefault(id(span["graph"]), span["graph"].get_operations())
        own = made[span["start"] : span["end"]]
        # Keras casts a layer's inputs just before it calls the layer.
        parent = span["parent"]
        within = parent is not None and parent["graph"] is span["graph"]
        begin = parent["start"] if within else recorder.begins.get(id(span["graph"]), 0)
        first = max(span["start"] - len(span["inputs"]), begin)
        casts = [x.op for x in span["inputs"] if x.op.type == "Cast"]
        for operation in [*own, *(x for x in made[first : span["start"]] if x in casts)]:
            owners[id(operation)] = span
    return owners


def _captured_values(graph) -> dict[int, np.ndarray]:
    """Values of the tensors that layers hold as attributes, which the graph takes from outside."""
    return {
        id(inner.op): outer.numpy()
        for outer, inner in graph.captures
        if isinstance(outer, tf.Tensor) and hasattr(outer, "numpy") and outer.dtype != tf.resource
    }


def _within(operation, owner) -> Iterator[tf.Operation]:
    """An operation and those of the functions that it calls, as loops do."""
    yield operation
    for name in ("body", "cond", "then_branch", "else_branch", "f"):
        graph = flow.called_graph(operation, name)
        for inner in graph.get_operations() if graph else ():
            if id(operation) in owner:
                owner.setdefault(id(inner), owner[id(operation)])
            yield from _within(inner, owner)


def _read(operations, model) -> dict[int, tuple[keras.Variable, ...]]:
    """The variables that operations read, also from within loops."""
    by_handle = {id(v.value.handle): v for v in model.variables if hasattr(v.value, "handle")}
    captured: dict[int, dict[str, Any]] = {}
    found = {}
    for operation in operations:
        read = []
        for tensor in operation.inputs:
            if tensor.dtype != tf.resource:
                continue
            while isinstance(getattr(tensor, "graph", None), func_graph.FuncGraph):
                graph = tensor.graph
                names = captured.setdefault(
                    id(graph), {inner.name: outer for outer, inner in graph.captures}
                )
                if tensor.name not in names:
                    break
                tensor = names[tensor.name]
            read += [by_handle[id(tensor)]] if id(tensor) in by_handle else []
        if read:
            found[id(operation)] = tuple(read)
    return found


def half_inside(trace: Trace) -> dict[int, str]:
    """The half dtype that layers have operations in, whatever their own, by the layers' ids.

    Args:
        trace: The trace of their model.
    """
    found: dict[int, str] = {}
    for call in trace.calls:
        made = [x.dtype.name for operation in call.operations for x in operation.outputs]
        half = next((dtype for dtype in made if dtype in HALF), None)
        if half:
            found[id(call.called)] = half
    return found
