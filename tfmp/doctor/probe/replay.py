"""One recorded call again, alone: in float32, in float32 with its inputs moved, or as it was."""

import contextlib
import dataclasses
import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmp.doctor.probe import compare
from tfmp.doctor.probe.explain import first_nonfinite
from tfmp.doctor.probe.patching import no_half_casts, patched
from tfmp.doctor.probe.recording import (
    Call,
    cast,
    float32,
    floats,
    invoke,
    is_float,
    opens,
    with_mask_of,
)


class ReplayError(Exception):
    """A layer did other things when it was replayed."""


@dataclasses.dataclass(frozen=True)
class Values:
    """What a call computed, without what the layers within computed.

    Attributes:
        results: Its float outputs, then what it gave to the layers within.
        passed: The gradients for its float inputs, then those for what the layers within gave; each
            None where none came.
        weights: The gradients for its own weights, each None where none came.
        operations: Where finite numbers became infinite or NaN first, forward and backward: names
            of TensorFlow operations, or None.
    """

    results: list[tf.Tensor]
    passed: list[tf.Tensor | None]
    weights: list[tf.Tensor | None]
    operations: tuple[str | None, str | None] = (None, None)


def weights_of(call: Call) -> list[keras.Variable]:
    """The trainable weights of a call's layer, without those of the layers within."""
    layer = call.operation
    if not isinstance(layer, keras.Layer):
        return []
    weights = layer._trainable_variables if opens(layer) else layer.trainable_variables
    return [v for v in weights if v.trainable]


def given_to(call: Call) -> list[tf.Tensor]:
    """The call's float inputs, and what the layers within gave."""
    return call.inputs() + [x for child in call.children for x in child.results()]


def upstream_of(call: Call) -> list[tf.Tensor | None]:
    """The gradients that came to each of `Values.results`."""
    own = [call.given.get(i) for i in range(len(call.results()))]
    inner = [x.passed.get(i) for x in call.children for i in range(len(x.inputs()))]
    return own + inner


def recorded(call: Call, gradients: dict[int, tf.Tensor]) -> Values:
    """What a call computed when it was recorded.

    Args:
        call: The call.
        gradients: Those of the whole step by the id of the variable; for a layer called once.
    """
    passed = [call.passed.get(i) for i in range(len(call.inputs()))]
    passed += [x.given.get(i) for x in call.children for i in range(len(x.results()))]
    results = call.results() + [x for child in call.children for x in child.inputs()]
    return Values(results, passed, [gradients.get(id(v)) for v in weights_of(call)])


def replay(
    call: Call, full: bool = True, moved: float = 0.0, backward: bool = True, seed: int = 0
) -> Values:
    """Computes a call again.

    Args:
        call: The call.
        full: In float32; else as it was.
        moved: Inputs, and the gradients that came, are brought towards zero by a random part of up
            to this, each number by its own.
        backward: Whether to compute gradients, too.
        seed: Seed of that.

    Raises:
        ReplayError: It called other layers than before, or failed.
    """
    move = functools.partial(compare.moved, rng=np.random.default_rng(seed), by=moved)

    def fed(x):
        # Copies, else what the step computed from them would be part of the gradient.
        if not is_float(x):
            return x
        return with_mask_of(x, move(tf.identity(cast(x, "float32") if full else x)))

    for variable, value in call.state:
        variable.assign(value)
    args, kwargs = keras.tree.map_structure(fed, (call.args, call.kwargs))
    upstream = [x if x is None else move(x) for x in upstream_of(call)] if backward else []
    look = contextlib.nullcontext if full else first_nonfinite
    try:
        return _run(call, args, kwargs, upstream, _Stubs(call, fed), full, look)
    except (tf.errors.OpError, TypeError, ValueError, AttributeError) as error:
        raise ReplayError(f"{call.path}: {error}") from error


def _run(call, args, kwargs, upstream, stubs, full, look) -> Values:
    inputs, weights = floats((args, kwargs)), [v._value for v in weights_of(call)]
    sources = len(given_to(call))
    precision: Any = (
        float32(call.operation, whole=not call.children) if full else contextlib.nullcontext()
    )
    with tf.GradientTape() as tape, patched(stubs.on_layer, _plainly, stubs.on_seed), precision:
        tape.watch(inputs)
        stubs.tape = tape
        with look() as forward, no_half_casts() if full else contextlib.nullcontext():
            outputs = call.operation(*args, **kwargs)
    results = floats(outputs) + stubs.inputs
    if len(results) != len(upstream_of(call)) or len(inputs + stubs.outputs) != sources:
        raise ValueError("it called other layers when called again")
    gradients: list = [None] * (sources + len(weights))
    behind = None
    wanted = [i for i, x in enumerate(upstream) if x is not None]
    if wanted:
        came = [tf.cast(upstream[i], results[i].dtype) for i in wanted]
        with look() as behind:
            gradients = tape.gradient(
                [results[i] for i in wanted], [*inputs, *stubs.outputs, *weights], came
            )
    gradients = [x if x is None else tf.convert_to_tensor(x) for x in gradients]
    first = next(iter(forward or []), None), next(iter(behind or []), None)
    return Values(results, gradients[:sources], gradients[sources:], first)


class _Stubs:
    """In place of the layers within a call: each gives what it gave."""

    def __init__(self, call, fed):
        self._call, self._fed = call, fed
        self._left, self._seeds = list(call.children), list(call.seeds)
        self.inputs: list[tf.Tensor] = []
        self.outputs: list[tf.Tensor] = []
        self.tape: tf.GradientTape

    def on_layer(self, original, layer, args, kwargs):
        call = self._call
        if layer is call.operation:
            return invoke(original, layer, args, kwargs)
        if not opens(call.operation) or tf.inside_function():
            return original(layer, *args, **kwargs)
        if not self._left or self._left[0].operation is not layer:
            if not call.children:  # they were not recorded, as in a graph
                return original(layer, *args, **kwargs)
            raise ValueError("it called its layers in another order")
        self.inputs += floats((args, kwargs))
        outputs = keras.tree.map_structure(self._fed, self._left.pop(0).outputs)
        self.outputs += floats(outputs)
        self.tape.watch(floats(outputs))
        return outputs

    def on_seed(self, original, seed):
        # In a graph the layer's own generators, set back, give what they gave.
        return self._seeds.pop(0) if self._seeds else original(seed)


def _plainly(original, operation, args, kwargs):
    return original(operation, *args, **kwargs)
