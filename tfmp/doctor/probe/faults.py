"""Judges the calls of a step: which layers compute something else in half than in float32."""

import collections
import dataclasses
import functools
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfmp.doctor.probe import compare
from tfmp.doctor.probe.recording import Call, computes, half_of
from tfmp.doctor.probe.replay import (
    ReplayError,
    given_to,
    recorded,
    replay,
    upstream_of,
)
from tfmp.doctor.probe.step import Step
from tfmp.doctor.probe.values import Fault, Span
from tfmp.doctor.subject import Subject
from tfmp.policies.choice import HALF

# Of a layer called more often than this (a cell, at each step) some calls are looked at.
CALLS = 4


def raises(step: Step) -> Fault:
    """The fault that is an error of a layer."""
    call = step.failed
    if call is None:
        return Fault(None, False, "forward", "raises", _dtype(step))
    layer = isinstance(call.operation, keras.Layer)
    dtype = half_of(call) or _dtype(step)
    taken = compare.largest(call.inputs())
    return Fault(call.path, layer, "forward", "raises", dtype, largest_input=taken)


def outside(step: Step) -> Fault:
    """The fault that gradients aren't finite, which no layer makes so: the loss does."""
    taken = compare.largest(x for call in step.calls for x in call.results())
    return Fault(None, False, "backward", "overflow", _dtype(step), largest_input=taken)


def _dtype(step) -> str:
    return next(filter(None, map(half_of, _calls(step))), "float16")


def added_faults(subject: Subject, step: Step, reference: Step) -> list[Fault]:
    """Faults in the loss and in what layers add to it: not finite in half, finite in float32.

    Args:
        subject: The model.
        step: A step in the model's own precision.
        reference: The same in float32.
    """
    paths = {id(part.layer): part.path for part in subject.parts}
    found: dict[str | None, Fault] = {}
    for (layer, half), (_, full) in zip(step.added, reference.added, strict=False):
        path = paths.get(id(layer))
        if path not in found and compare.finite(full) and not compare.finite(half):
            taken = compare.largest(
                x for call in _calls(step) if call.operation is layer for x in call.inputs()
            )
            found[path] = Fault(
                layer=path,
                is_layer=True,
                direction="forward",
                kind="overflow",
                dtype=half.dtype.name if half.dtype.name in HALF else layer.compute_dtype,
                operation="add_loss",
                largest_input=taken,
                largest_output=compare.largest([full]),
            )
    for half, full in zip(step.losses, reference.losses, strict=False):
        if not found and compare.finite(full) and not compare.finite(half):
            found[None] = dataclasses.replace(outside(step), direction="forward")
    return list(found.values())


def _calls(step) -> list[Call]:
    return [x for outermost in step.calls for x in outermost.everything()]


def forward_faults(step: Step, kept=frozenset()) -> list[tuple[Call, Fault]]:
    """Faults in what layers give, each with its call, one a layer.

    Args:
        step: A step in the model's own precision.
        kept: Operations to leave out.
    """
    return list(_faults(step, "forward", kept))


def backward_faults(step: Step, kept=frozenset()) -> list[tuple[Call, Fault]]:
    """Faults in the gradients that layers pass on, or in those of their weights."""
    return list(_faults(step, "backward", kept))


def _faults(step, direction, kept):
    for calls in _by_operation(step, kept).values():
        for call in _some(calls):
            fault = _judge(call, step, direction, alone=len(calls) == 1)
            if fault:
                yield call, fault
                break


def _by_operation(step, kept) -> dict[int, list[Call]]:
    found = collections.defaultdict(list)
    for call in _calls(step):
        if half_of(call) and computes(call) and call.operation not in kept:
            found[id(call.operation)].append(call)
    return found


def _some(calls) -> Iterator[Call]:
    if len(calls) <= CALLS:
        return iter(calls)
    broken = [x for x in calls if not all(map(compare.finite, x.results()))]
    return iter([calls[0], calls[len(calls) // 2], calls[-1], *broken[:1]])


def _judge(call, step, direction, alone) -> Fault | None:
    forward = direction == "forward"
    upstream = [x for x in upstream_of(call) if x is not None]
    # What the layers within gave, from bad numbers that they got, float32 gets as well.
    if not forward and _adds_losses(call, step):
        return None  # their gradients come from no result of the layer's
    fed = call.inputs() if forward else given_to(call) + upstream
    if not all(map(compare.finite, fed)) or (not forward and not upstream):
        return None
    dtype = half_of(call) or "float16"
    measured = recorded(call, step.gradients if alone else {})
    try:
        full = replay(call, backward=not forward)
        wrong = _differences(call, measured, full, dtype, forward)
        if not wrong:
            return None
        again = replay(call, full=False, backward=not forward)
    except ReplayError as error:
        step.unjudged[call.path] = str(error)
        return None
    # A layer that draws random numbers by itself, or whose weights are used elsewhere, too, does
    # other things when it is replayed.
    wrong = [(i, x) for i, x in wrong if _same(_of(measured, forward)[i], _of(again, forward)[i])]
    if not wrong:
        return None
    index, difference = wrong[0]
    operation = again.operations[0 if forward else 1]
    return Fault(
        layer=call.path,
        is_layer=isinstance(call.operation, keras.Layer),
        direction=direction,
        kind=difference.kind,
        dtype=dtype,
        operation=operation,
        inner=operation is not None and difference.error is not None,
        error=difference.error,
        explained=difference.explained,
        largest_input=compare.largest(fed),
        largest_output=compare.largest([_of(full, forward)[index]]),
    )


def _adds_losses(call, step) -> bool:
    adding = {id(layer) for layer, _ in step.added}
    held = call.operation._flatten_layers() if isinstance(call.operation, keras.Layer) else []
    return any(id(layer) in adding for layer in held)


def _of(values, forward) -> list[tf.Tensor | None]:
    return values.results if forward else [*values.passed, *values.weights]


def _differences(call, measured, full, dtype, forward) -> list[tuple[int, compare.Difference]]:
    """Each result, or gradient, that differs, by its number; what isn't finite comes first."""
    found = []

    @functools.cache
    def moved(times):
        by = 2 * times * compare.EPSILON[dtype]
        return _of(replay(call, moved=by, backward=not forward), forward)

    results = enumerate(call.results() if forward else [])  # and state of the layer's behind them
    masks = {index: getattr(x, "_keras_mask", None) for index, x in results}
    pairs = zip(_of(measured, forward), _of(full, forward), strict=True)
    for index, (half, right) in enumerate(pairs):
        if half is None or right is None:
            continue
        counted = functools.partial(_counted, masks.get(index))
        move = functools.partial(lambda i, counted, n: counted(moved(n)[i]), index, counted)
        difference = compare.compare(counted(half), counted(right), move, dtype, forward=forward)
        # The sums of weights' gradients are as good as the device's kernels: not the layer's doing.
        device = not forward and index >= len(full.passed)
        if difference and not (device and difference.kind == "departure"):
            found.append((index, difference))
    return sorted(found, key=lambda x: x[1].error is not None)


def _counted(mask, result):
    """A result with zeros where its mask says that nobody looks, as behind padding.

    What isn't finite there stays: times the zero of a mask it is NaN.
    """
    if mask is None or result.shape[: mask.shape.rank] != mask.shape:
        return result
    mask = tf.reshape(mask, [*mask.shape, *[1] * (result.shape.rank - mask.shape.rank)])
    return tf.where(mask | ~tf.math.is_finite(result), result, tf.zeros_like(result))


def _same(one, other) -> bool:
    """Whether two tensors are the same numbers, but for the order of sums."""
    if one is None or other is None:
        return False
    one, other = compare.array(one), compare.array(other)
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= 0.05 * np.max(np.abs(one), initial=0, where=np.isfinite(one))
    return bool(np.mean(close | (one == other) | (np.isnan(one) & np.isnan(other))) > 0.99)


def spans(step: Step) -> tuple[Span, ...]:
    """How far the float outputs of each layer reach, layers that only pass on left out."""
    found: dict[str | None, Span] = {}
    for call in _calls(step):
        outputs = call.results()
        if not outputs or not computes(call):
            continue
        largest = compare.largest(outputs)
        dtype = half_of(call) or outputs[0].dtype.name
        room = float(np.log2(float(tf.as_dtype(dtype).max) / largest)) if largest else None
        if call.path not in found or largest > found[call.path].largest:
            found[call.path] = Span(call.path, dtype, largest, room)
    return tuple(found.values())
