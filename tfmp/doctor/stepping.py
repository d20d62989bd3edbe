"""What a training step does around the model's layers: its operations in a graph.

As in `tfmp.doctor.trace` nothing is computed, and optimizers are given gradients and apply none. Of
Keras' own `train_step` the loss alone is traced, which is all that differs from model to model.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import func_graph, ops  # no public way to hold a graph open

from tfmp.doctor import trace as tracing
from tfmp.doctor.calling import (
    Attempt,
    Recorder,
    is_graph,
    shaped,
    spec,
    standing_in,
    taken_losses,
)

SCALE = 2.0**15  # of loss scales, while a step is traced


@dataclasses.dataclass(frozen=True, eq=False)
class Stepping:
    """A training step in a graph.

    Attributes:
        trace: Its operations; those that no layer made are the step's own.
        own: Whether it is a `train_step` of the model's own; else a loss of outputs alone.
        predicted: What stands for the model's outputs where it is a loss alone, flat.
        labels: What stands for the labels in a `train_step`, flat; empty where they aren't known.
        targets: What tapes took gradients of.
        gradients: What tapes gave.
        handed: What optimizers got.
        applied: What was differentiated for each optimizer that got gradients, by its name.
        scaled: Names of the optimizers whose `scale_loss` was called.
        backward: The operations that tapes made, by their ids.
    """

    trace: tracing.Trace
    own: bool
    predicted: tuple[tf.Tensor, ...] = ()
    labels: tuple[tf.Tensor, ...] = ()
    targets: tuple[tf.Tensor, ...] = ()
    gradients: tuple[tf.Tensor, ...] = ()
    handed: tuple[tf.Tensor, ...] = ()
    applied: dict[str, tuple[tf.Tensor, ...]] = dataclasses.field(default_factory=dict)
    scaled: frozenset[str] = frozenset()
    backward: frozenset[int] = frozenset()


def has_own_step(model) -> bool:
    """Whether a model trains by a `train_step`, or a `compute_loss`, of its own."""
    own = type(model).train_step is not keras.Model.train_step or "train_step" in vars(model)
    return own or type(model).compute_loss is not keras.Model.compute_loss


def stepping(model, loss, optimizers, outputs, inputs=None, labels=None) -> Stepping | None:
    """Traces a training step; None: nothing is known to train by, or the step fails on symbols.

    Args:
        model: A built model; it stays as it is.
        loss: Its loss, or losses; None where there is none.
        optimizers: Pairs of name and optimizer.
        outputs: Tensors that the model returns.
        inputs: A batch, or tensors of its shapes and dtypes; None: what the model declares.
        labels: The batch's labels; None: of the shape of the outputs, or one class for each.
    """
    if has_own_step(model):
        if getattr(model, "_distribute_strategy", None) is not None:
            return None
        run: Callable = functools.partial(_own, labeled=labels is not None)
        candidates: Iterator[Any] = _data(model, outputs, inputs, labels)
    else:
        if loss is None:
            return None
        candidates = _labels(outputs, labels)
        run = _loss_alone
    for data in candidates:
        with contextlib.suppress(Exception):  # whatever a model of the user's raises
            return run(model, loss, optimizers, outputs, data)
    return None


def _labels(outputs, labels):
    """Flat lists of specs of labels to try."""
    if labels is not None:
        yield [spec(x) for x in keras.tree.flatten(labels)]
        return
    yield [tf.TensorSpec(x.shape, "float32") for x in outputs]
    yield [tf.TensorSpec(x.shape[:-1], "int32") for x in outputs]


def _data(model, outputs, inputs, labels):
    """Nested specs of what a `train_step` may take."""
    given = _declared(model) if inputs is None else keras.tree.map_structure(spec, inputs)
    if given is None:
        return
    if labels is not None:
        yield given, keras.tree.map_structure(spec, labels)
        return
    if len(outputs) == 1 and inputs is None:
        yield from ((given, x[0]) for x in _labels(outputs, None))
    yield given if not isinstance(given, list | tuple) else (given,)


def _declared(model):
    if is_graph(model) and model.built:
        given = model.inputs[0] if isinstance(model, keras.Sequential) else model._inputs_struct
        return keras.tree.map_structure(spec, given)
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    held = model._flatten_layers()
    tokens = any(isinstance(x, keras.layers.Embedding) for x in held)
    first = next(iter(shapes.values()), None)
    return None if first is None else shaped(first, "int32" if tokens else "float32")


def _symbols(specs):
    return keras.tree.map_structure(lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), specs)


def _loss_alone(model, loss, optimizers, outputs, specs) -> Stepping:
    """The losses of stand-ins for the outputs."""
    losses = [loss] if not isinstance(loss, dict | list | tuple) else keras.tree.flatten(loss)
    if not len(losses) == len(outputs) == len(specs):
        raise ValueError("losses, outputs and labels don't match")
    graph, recorder = func_graph.FuncGraph("doctor_loss"), Recorder()
    with graph.as_default(), recorder.recording(model):
        predicted = tuple(tf.compat.v1.placeholder(x.dtype, x.shape) for x in outputs)
        labels = _symbols(specs)
        totals = [
            tf.reduce_mean(keras.losses.get(one)(y, p))
            for one, y, p in zip(losses, labels, predicted, strict=True)
        ]
    attempt = Attempt(model, graph, recorder, totals, [])
    return Stepping(tracing.combined(model, [attempt]), False, predicted)


def _own(model, loss, optimizers, outputs, specs, labeled=False) -> Stepping:
    """The model's own `train_step`."""
    graph, recorder, tapes = func_graph.FuncGraph("doctor_step"), Recorder(), _Tapes()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_as_it_was(model))
            for name, optimizer in optimizers:
                stack.enter_context(tapes.instead_of(name, optimizer))
            stack.enter_context(graph.as_default())
            data = _symbols(specs)
            stack.enter_context(tapes.watching())
            stack.enter_context(recorder.recording(model))
            model.train_step(data)
    finally:
        taken_losses(model)
    attempt = Attempt(model, graph, recorder, [], [])
    return Stepping(
        tracing.combined(model, [attempt]),
        own=True,
        labels=tuple(keras.tree.flatten(data[1])) if labeled else (),
        targets=tuple(tapes.targets),
        gradients=tuple(tapes.gradients),
        handed=tuple(tapes.handed),
        applied=tapes.applied,
        scaled=frozenset(tapes.scaled),
        backward=frozenset(tapes.backward),
    )


@contextlib.contextmanager
def _as_it_was(model):
    """Attributes that a step sets, symbols maybe, are put back.

    So are the losses and metrics of `compile`, which would be built for the labels' stand-ins.
    """
    before = dict(vars(model))
    compiled = before.get("_compile_loss")
    if compiled is not None:
        vars(model)["_compile_loss"] = type(compiled)(
            compiled._user_loss, compiled._user_loss_weights, output_names=compiled.output_names
        )
    vars(model)["_compile_metrics"] = None
    try:
        yield
    finally:
        for name in vars(model).keys() - before.keys():
            del vars(model)[name]
        vars(model).update(before)


class _Tapes:
    """Notes what is differentiated, and what optimizers get."""

    def __init__(self):
        self.targets: list[tf.Tensor] = []
        self.gradients: list[tf.Tensor] = []
        self.handed: list[tf.Tensor] = []
        self.applied: dict[str, tuple[tf.Tensor, ...]] = {}
        self.scaled: set[str] = set()
        self._calls: list[tuple[tf.Tensor, set[int]]] = []
        self.backward: set[int] = set()

    @contextlib.contextmanager
    def watching(self):
        """Calls of `GradientTape.gradient` are noted within."""
        original = tf.GradientTape.gradient

        def gradient(tape, target, *args, **kwargs):
            graph = ops.get_default_graph()
            start = graph.num_operations()
            found = original(tape, target, *args, **kwargs)
            self.backward |= {id(x) for x in graph.get_operations()[start:]}
            self.targets += _tensors(target)
            self.gradients += _tensors(found)
            self._calls += [(x, {id(g) for g in _tensors(found)}) for x in _tensors(target)]
            return found

        tf.GradientTape.gradient = gradient
        try:
            yield
        finally:
            tf.GradientTape.gradient = original

    def instead_of(self, name, optimizer):
        """A context in which an optimizer applies nothing, and its loss scale is a constant."""

        def apply(grads, trainable_variables=None):
            handed = _tensors(list(grads))
            ids = {id(x) for x in handed}
            own = [target for target, found in self._calls if ids & found]
            # What went through more on its way may be of any.
            self.applied[name] = self.applied.get(name, ()) + tuple(own or self.targets)
            self.handed += handed

        def apply_gradients(grads_and_vars):
            apply([gradient for gradient, _ in grads_and_vars])

        def scale_loss(loss):
            self.scaled.add(name)
            return loss * tf.cast(SCALE, loss.dtype)

        methods: dict = {"apply": apply, "apply_gradients": apply_gradients}
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            methods["scale_loss"] = scale_loss
        return standing_in(optimizer, SCALE, **methods)


def _tensors(values) -> list[tf.Tensor]:
    flat = [x.values if isinstance(x, tf.IndexedSlices) else x for x in keras.tree.flatten(values)]
    return [x for x in flat if tf.is_tensor(x) and hasattr(x, "op")]
