"""Where a step in half parts from the same step in float32, though no layer is at fault alone."""

import numpy as np
import tensorflow as tf

from tfmp.doctor.probe import compare
from tfmp.doctor.probe.recording import Call, computes, half_of
from tfmp.doctor.probe.replay import ReplayError, given_to, replay
from tfmp.doctor.probe.step import Step
from tfmp.doctor.probe.values import Fault

# What a layer takes is right up to the first share; what it gives is wrong from the second on.
RIGHT, WRONG = 0.02, 0.3


def parting(step: Step, reference: Step) -> list[tuple[Call, Fault]]:
    """Layers that take what is right but for rounding, and give what is wrong, each with its call.

    Run alone in float32, from the rounded values, such a layer gives the same: it takes the small
    difference of large numbers, or magnifies them.

    Args:
        step: A step in the model's own precision.
        reference: The same in float32.
    """
    calls, others = (
        [x for outermost in y.calls for x in outermost.everything()] for y in (step, reference)
    )
    if [x.operation for x in calls] != [x.operation for x in others]:
        return []
    found = []
    told: set[int] = set()
    for call, full in zip(calls, others, strict=True):
        dtype = half_of(call)
        if not dtype or not computes(call) or id(call.operation) in told:
            continue
        error = _apart(call.results(), full.results())
        if error is None or error < WRONG:
            continue
        before = _apart(given_to(call), given_to(full))
        if before is not None and before <= RIGHT and _magnifies(call, full, dtype):
            told.add(id(call.operation))
            of_model = any(_takes_cast(call, full, x, dtype) for x in step.calls)
            fault = Fault(
                layer=None if of_model else call.path,
                is_layer=computes(call) and hasattr(call.operation, "dtype_policy"),
                direction="forward",
                kind="cancels",
                dtype=dtype,
                takes_cast=call.path if of_model else None,
                error=error,
                explained=before,
                largest_input=compare.largest(given_to(call)),
                largest_output=compare.largest(full.results()),
            )
            found.append((call, fault))
    return found


def _takes_cast(call, full, model_call, dtype) -> bool:
    """Whether a layer in float32 takes the model's own inputs, as the model has cast them."""
    if getattr(call.operation, "compute_dtype", None) != "float32":
        return False
    inputs = [x for x in model_call.inputs() if x.dtype == tf.float32]
    given, right = ([compare.array(x) for x in y.inputs()] for y in (call, full))
    if not inputs or not given:
        return False
    exact = np.concatenate([compare.array(x) for x in inputs])
    cast = np.concatenate([compare.array(tf.cast(x, dtype)) for x in inputs])
    pairs = zip(given, right, strict=True)
    return all(np.isin(x, cast).all() and np.isin(y, exact).all() for x, y in pairs)


def agree(step: Step, reference: Step) -> bool:
    """Whether the model gives the same, and its gradients are the same by their norm.

    Args:
        step: A step in the model's own precision.
        reference: The same in float32.
    """
    ids = list(reference.gradients)
    if len(step.calls) != len(reference.calls) or any(i not in step.gradients for i in ids):
        return False
    for one, other in zip(step.calls, reference.calls, strict=True):
        apart = _apart(one.results(), other.results())
        if apart is None or apart > compare.HARMLESS:
            return False
    half, full = (
        np.concatenate([compare.array(x.gradients[i]) for i in ids] or [np.zeros(1)])
        for x in (step, reference)
    )
    return bool(np.linalg.norm(half - full) <= compare.HARMLESS * np.linalg.norm(full))


def _apart(half, full, by=None) -> float | None:
    """The largest difference of two lists of tensors, by their size; None: they can't be told.

    Args:
        half: List of tensors.
        full: Likewise.
        by: Tensors whose size it is to be; none: those of `full`.
    """
    if len(half) != len(full):
        return None
    worst = 0.0
    for one, other, measure in zip(half, full, by or full, strict=True):
        if one.shape != other.shape or not (compare.finite(one) and compare.finite(other)):
            return None
        a, b = compare.array(one), compare.array(other)
        size = np.linalg.norm(compare.array(measure))
        if size:
            worst = max(worst, float(np.linalg.norm(a - b) / size))
    return worst


def _magnifies(call, full, dtype) -> bool:
    """Whether rounding what it takes explains what it gives: else it drew other numbers."""
    try:
        moved = replay(call, moved=2 * compare.EPSILON[dtype], backward=False).results
        still, again = (replay(call, backward=False).results for _ in range(2))
    except ReplayError:
        return False
    right = full.results()
    count = len(right)
    # Of two numbers that are the same in half nothing is left, which is no measure of what moves.
    shift, drawn = (_apart(x[:count], still[:count], by=right) for x in (moved, again))
    return shift is not None and drawn is not None and drawn <= RIGHT and shift > WRONG / 3
