"""Whether a few steps in half precision did what they do in float32: pure functions of both."""

import math

import numpy as np

# How far the first step's whole gradient may be off float32's, as a share of its norm. Rounding
# alone takes much less (see the tests); zeros in its place are 1.
GRADIENT = 0.5
# A loss below this is compared as if it were this.
SMALLEST_LOSS = 1e-3


def problem(run, reference, tolerance) -> str | None:
    """What is wrong with a run, in a few words; None: nothing.

    Args:
        run: A `Run` of the trial.
        reference: The `Run` in float32, which is finite.
        tolerance: Share by which the loss of a step may differ from float32's.
    """
    if run.problem:
        return run.problem
    for step, (ours, theirs) in enumerate(zip(run.losses, reference.losses, strict=True), start=1):
        off = abs(ours - theirs) / max(abs(theirs), SMALLEST_LOSS)
        if off > tolerance:
            return f"the loss of step {step} is {ours:.4g}, {off:.0%} off float32's {theirs:.4g}"
    off = gradients_off(run.gradients, reference.gradients)
    if off > GRADIENT:
        return f"the first step's gradients are {off:.0%} off float32's"
    return None


def gradients_off(ours, theirs) -> float:
    """Norm of the difference of two lists of arrays, as a share of the second's norm."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    norm = math.sqrt(sum(float(np.sum(np.square(b, dtype=np.float64))) for _, b in pairs))
    square = sum(float(np.sum(np.square(np.subtract(a, b, dtype=np.float64)))) for a, b in pairs)
    return math.sqrt(square) / norm if norm else 0.0
