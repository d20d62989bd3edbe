"""What each layer of a model was given, gave and passed back, while the model runs eagerly.

A `Call` is one call of a layer. It can be replayed alone: with the inputs it had, while the layers
that it called give what they gave. So a fault is seen where it arises and not where it arrives.
"""

import contextlib
import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope
from keras.src.ops.operation import Operation

from tfmp.doctor.probe.patching import as_graph, patched
from tfmp.doctor.subject import Subject
from tfmp.doctor.trace import half_inside, is_graph
from tfmp.layer_paths import is_closed
from tfmp.policies.choice import HALF

# Up to this many steps a recurrent layer runs eagerly, and a cell of the user's own is looked at by
# itself; building the graph of a longer one takes about as long as 20 steps.
EAGER_STEPS = 20


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer, or of an operation of a functional model.

    Attributes:
        operation: The layer or operation.
        path: The layer's, as in `subject.parts`; of an operation, its name behind the path of the
            layer around it. None: the model.
        args: Positional arguments as they came, before the layer cast them.
        kwargs: Those by name, and `training` and `mask` as the layer got them.
        outputs: What it returned.
        children: The calls made within it, in their order.
        seeds: What it drew from its seed generators.
        state: (variable, value before the call) of what a call may change.
        given: The gradients that came to its float outputs, by their number.
        passed: The gradients that it gave for its float inputs, by their number.
        inside: The half dtype that it casts to by name, whatever its own dtype; None: none.
    """

    operation: Operation
    path: str | None
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)
    outputs: Any = None
    children: list["Call"] = dataclasses.field(default_factory=list)
    seeds: list = dataclasses.field(default_factory=list)
    state: list = dataclasses.field(default_factory=list)
    given: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)
    passed: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)

    inside: str | None = None

    def inputs(self) -> list[tf.Tensor]:
        """Its float inputs, flat."""
        return floats((self.args, self.kwargs))

    def results(self) -> list[tf.Tensor]:
        """Its float outputs, flat."""
        return floats(self.outputs)

    def everything(self) -> list["Call"]:
        """This call and all below it, in the order in which they ended."""
        return [x for child in self.children for x in child.everything()] + [self]


def is_eager(value) -> bool:
    """Whether a value is a tensor with a value."""
    return isinstance(value, tf.Tensor) and hasattr(value, "_numpy")


def is_float(value) -> bool:
    """Whether a value is an eager float tensor."""
    return is_eager(value) and value.dtype.is_floating


def floats(values) -> list[tf.Tensor]:
    """The eager float tensors among nested values, flat."""
    return [x for x in keras.tree.flatten(values) if is_float(x)]


def cast(values, dtype: str, only=HALF):
    """Nested values with the float tensors of some dtypes cast, masks kept."""

    def one(value):
        if not is_float(value) or value.dtype.name not in only:
            return value
        return with_mask_of(value, tf.cast(value, dtype))

    return keras.tree.map_structure(one, values)


def opens(operation: Operation) -> bool:
    """Whether the layers within a layer are looked at one by one."""
    return isinstance(operation, keras.Layer) and not is_closed(operation)


def computes(call: Call) -> bool:
    """Whether a call computes anything itself, beside what the calls within it do."""
    return not (isinstance(call.operation, keras.Layer) and is_graph(call.operation))


class Recorder:
    """Records the calls made within `recording()`.

    Args:
        subject: The model and its layers' paths.
        kept: Layers and operations that compute in float32, whatever their policy.
        full: Whether half weights are cast to float32.

    Attributes:
        calls: The outermost calls, in their order.
        failed: The innermost call that raised an error; None: none did.
    """

    def __init__(self, subject: Subject, kept: frozenset[Operation] = frozenset(), full=False):
        self.calls: list[Call] = []
        self.failed: Call | None = None
        self._root = subject.model
        self._paths = {id(part.layer): part.path for part in subject.parts}
        self._inside = half_inside(subject.trace)
        self._kept = kept
        self._full = full
        self._stack: list[Call] = []

    @contextlib.contextmanager
    def recording(self):
        """Layers called within are recorded; `tf.function`s run eagerly."""
        with patched(self._on_layer, self._on_operation, self._on_seed):
            yield self

    def _closed(self, values):
        inside = self._stack and not opens(self._stack[-1].operation)
        return inside or tf.inside_function() or not all_eager(values)

    def _on_layer(self, original, layer, args, kwargs):
        if self._closed((args, kwargs)):
            return original(layer, *args, **kwargs)
        return self._record(original, layer, args, kwargs)

    def _on_operation(self, original, operation, args, kwargs):
        if isinstance(operation, keras.Layer):
            # The call of a layer comes by here with what it got from around it.
            if self._stack and self._stack[-1].operation is operation:
                context = {k: kwargs[k] for k in ("training", "mask") if k in kwargs}
                self._stack[-1].kwargs.update(context)
            return original(operation, *args, **kwargs)
        if not self._stack or self._closed((args, kwargs)):
            return original(operation, *args, **kwargs)
        return self._record(original, operation, args, kwargs)

    def _record(self, original, operation, args, kwargs):
        call = Call(operation, self._path(operation), inside=self._inside.get(id(operation)))
        call.args, given = _tap((args, kwargs), call.passed)
        call.kwargs = dict(given)
        # Not by `value`, which the scope of the layer around would cast to half.
        call.state = [(v, tf.identity(v._value)) for v in _changing(operation)]
        parent = self._stack[-1] if self._stack else None
        (parent.children if parent else self.calls).append(call)
        self._stack.append(call)
        try:
            if operation in self._kept:
                args, given = cast((call.args, given), "float32")
                with float32(operation):
                    outputs = invoke(original, operation, args, given)
            else:
                with AutocastScope("float32") if self._full else contextlib.nullcontext():
                    outputs = invoke(original, operation, call.args, given)
        except Exception:
            self.failed = self.failed or call
            raise
        finally:
            self._stack.pop()
        call.outputs = outputs
        outputs = _tap(outputs, call.given)
        if parent and parent.operation in self._kept:
            outputs = cast(outputs, "float32")
        return outputs

    def _path(self, operation):
        if operation is self._root:
            return None
        around = self._stack[-1].path if self._stack else None
        own = "/".join(filter(None, (around, operation.name)))
        path = self._paths.get(id(operation), own)
        if isinstance(operation, keras.layers.TimeDistributed):
            # It runs the layer in it within a graph.
            return f"{path}/{operation.layer.name}"
        return path

    def _on_seed(self, original, seed):
        drawn = original(seed)
        if self._stack and is_eager(drawn):
            self._stack[-1].seeds.append(drawn)
        return drawn


def invoke(original, operation: Operation, args, kwargs):
    """Calls a layer; one of many steps as a graph, since eagerly each step would take as long."""
    inputs = floats(args)
    recurrent = isinstance(operation, keras.layers.RNN) and inputs
    if not recurrent or inputs[0].shape[1] <= EAGER_STEPS:
        return original(operation, *args, **kwargs)
    return as_graph(lambda: original(operation, *args, **kwargs))


def half_of(call: Call) -> str | None:
    """The half dtype that a call computes in, takes or gives; None: none of them."""
    layer = call.operation
    own = [layer.compute_dtype] if isinstance(layer, keras.Layer) else []
    seen = [x.dtype.name for x in [*call.inputs(), *call.results()]]
    return next((dtype for dtype in [*own, *seen] if dtype in HALF), call.inside)


@contextlib.contextmanager
def float32(operation: Operation, whole: bool = False):
    """A layer computes in float32 within; so does what a layer of Keras' own made for itself.

    Args:
        operation: The layer, or an operation.
        whole: Whether a recurrent layer's cell does, too.
    """
    layers: list[keras.Layer] = []
    if isinstance(operation, keras.Layer):
        # A cell that ran within a graph was not looked at by itself.
        alone = opens(operation) and not (whole and isinstance(operation, keras.layers.RNN))
        layers = [operation] if alone else operation._flatten_layers()
    with all_float32(layers), AutocastScope("float32"):
        yield


@contextlib.contextmanager
def all_float32(layers):
    """Layers that compute in half compute in float32 within."""
    before = [(x, x._dtype_policy) for x in layers if x.compute_dtype in HALF]
    for layer, _ in before:
        layer._dtype_policy = keras.DTypePolicy("float32")
    try:
        yield
    finally:
        for layer, policy in before:
            layer._dtype_policy = policy


def _changing(operation):
    """Variables that a call may change: not those of layers within, which are on their own."""
    if not isinstance(operation, keras.Layer):
        return []
    if not opens(operation):
        return operation.non_trainable_variables
    return operation._non_trainable_variables


def all_eager(values) -> bool:
    """Whether no tensor among nested values is of a graph."""
    return not any(
        isinstance(x, keras.KerasTensor) or (tf.is_tensor(x) and not is_eager(x))
        for x in keras.tree.flatten(values)
        if not isinstance(x, tf.RaggedTensor | tf.SparseTensor)
    )


def with_mask_of(old, new):
    """A tensor with the mask that Keras hung on another one."""
    mask = getattr(old, "_keras_mask", None)
    if mask is not None:
        new._keras_mask = mask
    return new


def _tap(values, store):
    """The same values, whose gradients are put in `store` as they come back."""
    number = iter(range(1 << 30))

    def one(value):
        if not is_float(value):
            return value
        key = next(number)

        @tf.custom_gradient
        def identity(x):
            def backward(upstream):
                store.setdefault(key, tf.convert_to_tensor(upstream))
                return upstream

            return tf.identity(x), backward

        return with_mask_of(value, identity(value))

    return keras.tree.map_structure(one, values)
