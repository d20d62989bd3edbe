"""Where a step in half parts from the same step in float32, though no layer is at fault alone."""

import numpy as np

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
            fault = Fault(
                layer=call.path,
                is_layer=computes(call) and hasattr(call.operation, "dtype_policy"),
                direction="forward",
                kind="cancels",
                dtype=dtype,
                error=error,
                explained=before,
                largest_input=compare.largest(given_to(call)),
                largest_output=compare.largest(full.results()),
            )
            found.append((call, fault))
    return found


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


def _apart(half, full) -> float | None:
    """The largest difference of two lists of tensors, by their size; None: they can't be told."""
    if len(half) != len(full):
        return None
    worst = 0.0
    for one, other in zip(half, full, strict=True):
        if one.shape != other.shape or not (compare.finite(one) and compare.finite(other)):
            return None
        a, b = compare.array(one), compare.array(other)
        size = np.linalg.norm(b)
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
    count = len(full.results())
    shift, drawn = (_apart(x[:count], still[:count]) for x in (moved, again))
    return shift is not None and drawn is not None and drawn <= RIGHT and shift > WRONG / 3
