"""Runs a step once more, without XLA and layer by layer, to see where it became infinite or NaN.

It needs what the step had: its batch, and the state from before it. Nothing of the training is
changed: variables stand for copies meanwhile, and gradients are not applied.
"""

import contextlib
import copy
import dataclasses
import math

import keras
import tensorflow as tf
from keras.src.ops.operation import Operation  # the public one is another class

from tfmp import distribution, loss_scale
from tfmp.training import layer_maxima


@dataclasses.dataclass(frozen=True)
class Fault:
    """Where a step first became infinite or NaN.

    Attributes:
        layer: Path of the layer; None: no layer did it.
        direction: "forward" or "backward".
        what: What became so.
        largest: Largest magnitude that went in, finite as it was; None: not known.
        replica: Position of the replica.
    """

    layer: str | None
    direction: str
    what: str
    largest: float | None = None
    replica: int = 0


def state_variables(model):
    """What a forward and backward pass depends on, without the optimizers' slots: Keras variables.

    Args:
        model: A compiled Keras model.
    """
    optimizers = loss_scale.optimizers_of(model)
    optimizers += [loss_scale.inner(x) for x in optimizers]
    scalars = [v for x in optimizers for v in x.variables if len(v.shape) == 0]
    found = [*model.variables, *scalars]
    return list({id(v): v for v in found}.values())


def packed(values):
    """Copies of values in one vector for each dtype; for tracing.

    Not the values themselves: a variable that somebody holds an old value of can't be updated in
    its place, and XLA copies each such one before the step.

    Args:
        values: List of tensors.
    """
    return [
        # (A lone part would be handed on without a copy.)
        tf.concat([*(tf.reshape(x, [-1]) for x in values if x.dtype == dtype), [0]], 0)
        for dtype in _dtypes(values)
    ]


def unpacked(variables, vectors):
    """The values of variables, from what `packed` made of them.

    Args:
        variables: List of Keras variables.
        vectors: List of tensors.

    Returns:
        List of tensors, in the order of the variables.
    """
    values = {}
    for dtype, vector in zip(_dtypes(variables), vectors, strict=True):
        some = [v for v in variables if tf.as_dtype(v.dtype) == dtype]
        parts = tf.split(vector, [*(math.prod(v.shape) for v in some), 1])
        for variable, part in zip(some, parts, strict=False):
            values[id(variable)] = tf.reshape(part, variable.shape)
    return [values[id(variable)] for variable in variables]


def _dtypes(values):
    return list(dict.fromkeys(tf.as_dtype(x.dtype) for x in values))


def rerun(steps, index, data, state):
    """Runs the step of one replica once more.

    Args:
        steps: `tfmp.training.replica.ReplicaSteps`.
        index: Position of the replica.
        data: Its part of the batch.
        state: List of (Keras variable, value before the step), of `state_variables`.

    Returns:
        A `Fault`; None where everything is finite.
    """
    steps = copy.copy(steps)
    steps.jit_compile = steps.fused_layers = steps.remat = False
    steps.maxima = None
    witness = _Witness(steps.model, index)
    device = distribution.devices(steps.model.distribute_strategy)[index]
    with (
        tf.device(device) if device else contextlib.nullcontext(),
        steps.on_copies(index, state),
        witness.watching(),
    ):
        for part in steps.parts(data):
            watches = []
            # A metric may refuse what the layers gave, where XLA would not.
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                watches, _ = steps._watched_step(part, 1.0 / steps.microbatches)
            steps.model._clear_losses()  # else they would stay with the layers
            if fault := witness.verdict(watches):
                return fault
    return None


class _Witness:
    """Sees calls of layers and operations, and the gradients that pass between them, run eagerly.

    Args:
        model: The Keras model.
        replica: Position of the replica.
    """

    def __init__(self, model, replica):
        self._replica = replica
        self._paths = {id(layer): path for layer, path in layer_maxima.paths(model)}
        self._paths |= {id(model): "", id(layer_maxima.inner_model(model)): ""}
        self._owners = layer_maxima.owners(model)
        self._stack = []  # (operation, path)
        self._forward = self._surely = self._backward = None
        self._clock = self._time = 0  # of gradients; of the first bad one
        self._times = {}  # when the first gradient came to a layer, by path
        self._given = {}  # largest gradient that came to a layer

    @contextlib.contextmanager
    def watching(self):
        """A context in which it sees. Patches Keras: nothing else may run beside."""
        calls = keras.Layer.__call__, Operation.__call__
        eagerly = tf.config.functions_run_eagerly()

        def layer_call(layer, *args, **kwargs):
            path = self._paths.get(id(layer))
            return self._see(calls[0], layer, path, args, kwargs)

        def operation_call(operation, *args, **kwargs):
            path = None  # a layer, which has come by `layer_call`; or inside of one
            if not isinstance(operation, keras.Layer) and self._stack:
                path = f"{self._stack[-1][1]}/{operation.name}".lstrip("/")
            return self._see(calls[1], operation, path, args, kwargs)

        keras.Layer.__call__, Operation.__call__ = layer_call, operation_call
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(eagerly)
            keras.Layer.__call__, Operation.__call__ = calls

    def verdict(self, watches):
        """The `Fault` of what it saw; None: all was finite.

        Args:
            watches: The step's `Watch`es.
        """
        # Where the loss is finite, what can't be meant; else the first of all.
        losses = [layer_maxima.largest(x) for watch in watches for x in watch.losses]
        bad_loss = not all(map(math.isfinite, losses))
        if forward := self._forward if bad_loss or not losses else self._surely:
            return forward
        if bad_loss:
            return self._fault(None, "forward", "the loss")
        for watch in watches:
            for gradients, variables in watch.applied:
                for gradient, variable in zip(gradients, variables, strict=True):
                    self._see_weight(gradient, variable)
        return self._backward

    def _fault(self, path, direction, what, largest=None):
        known = largest is not None and math.isfinite(largest)
        return Fault(path or None, direction, what, largest if known else None, self._replica)

    # --- forward

    def _see(self, call, operation, path, args, kwargs):
        if path is None or tf.inside_function():
            return call(operation, *args, **kwargs)
        parent = self._stack[-1] if self._stack else None
        taken = _largest((args, kwargs))
        if not math.isfinite(taken):
            what = f"what it makes for {operation.name}" if parent else "the batch"
            self._blame_forward(parent[1] if parent else None, what, None, (args, kwargs))
        args, kwargs = self._tapped((args, kwargs), lambda g: self._on_passed(path, g))
        self._stack.append((operation, path))
        try:
            outputs = call(operation, *args, **kwargs)
        finally:
            self._stack.pop()
        if not math.isfinite(_largest(outputs)):
            self._blame_forward(path, "its output", taken, outputs)
        return self._tapped(outputs, lambda g: self._on_given(path, parent, g))

    def _blame_forward(self, path, what, taken, values):
        fault = self._fault(path, "forward", what, taken)
        self._forward = self._forward or fault
        # Minus infinity may be meant, as masks are, where the loss is finite. (A finite loss says
        # little: max pooling drops NaN.)
        if not self._surely and not _is_mask(values):
            self._surely = fault

    # --- backward

    def _on_given(self, path, parent, gradient):
        """Gradient that comes to a layer's output."""
        self._clock += 1
        self._times.setdefault(path, self._clock)
        self._given[path] = _largest(gradient)
        if math.isfinite(self._given[path]) or self._backward:
            return
        if parent and not _is_graph(parent[0]):
            self._blame_backward(parent[1], "the gradient within it", self._given.get(parent[1]))
        elif self._clock == 1 or not any(map(math.isfinite, self._given.values())):
            self._blame_backward(None, "the gradient of the loss", None)
        else:
            self._blame_backward(path, "the sum of the gradients of its output", None)

    def _on_passed(self, path, gradient):
        """Gradient that a layer passes on."""
        self._clock += 1
        if not math.isfinite(_largest(gradient)) and not self._backward:
            self._blame_backward(path, "the gradient of its input", self._given.get(path))

    def _see_weight(self, gradient, variable):
        if gradient is None or math.isfinite(_largest(gradient)):
            return
        path = self._owners.get(id(variable))
        time = self._times.get(path, self._clock)
        if self._backward is None or time < self._time:
            what = f"the gradient of its {variable.name}"
            self._backward = self._fault(path, "backward", what, self._given.get(path))
            self._time = time

    def _blame_backward(self, path, what, given):
        self._backward = self._fault(path, "backward", what, given)
        self._time = self._clock

    def _tapped(self, values, on_gradient):
        """The same values, whose gradients are shown as they come back."""

        @tf.custom_gradient
        def tap(x):
            def gradient(upstream):
                on_gradient(upstream)
                return upstream

            return tf.identity(x), gradient

        def tapped(x):
            if not _is_float(x):
                return x
            made = tap(x)
            if (mask := getattr(x, "_keras_mask", None)) is not None:
                made._keras_mask = mask
            return made

        return keras.tree.map_structure(tapped, values)


def _is_graph(layer):
    """Whether a layer does nothing but call others: a functional or Sequential model."""
    return hasattr(layer, "_run_through_graph") or isinstance(layer, keras.Sequential)


def _is_mask(values):
    """Whether float tensors have no NaN, and no infinity but minus infinity."""
    found = [x for x in keras.tree.flatten(values) if _is_float(x)]
    return all(bool(tf.reduce_all(x < math.inf)) for x in found)


def _is_float(x):
    return isinstance(x, tf.Tensor) and x.dtype.is_floating


def _largest(values):
    """Largest magnitude of all float tensors, infinite for NaN: a float."""
    values = values.values if isinstance(values, tf.IndexedSlices) else values
    found = [layer_maxima.largest(x) for x in keras.tree.flatten(values) if _is_float(x)]
    return max((float(x) for x in found), default=0.0)
