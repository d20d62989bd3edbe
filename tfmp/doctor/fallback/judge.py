"""Whether a few steps in half precision did what they do in float32: pure functions of both."""

import math

import numpy as np

# How far the first step's whole gradient may be off float32's, as a share of its norm: zeros in its
# place are 1.
GRADIENT = 0.5
# In a model that amplifies rounding, loss and gradient may be off by this many times what they are
# in float32 where only the weights are rounded: activations are rounded in each layer, too.
ROUNDINGS = 4
# A loss below this is compared as if it were this.
SMALLEST_LOSS = 1e-3


def problem(run, reference, rounded, tolerance) -> str | None:
    """What is wrong with a run, in a few words; None: nothing.

    Args:
        run: A `Run` of the trial.
        reference: The `Run` in float32, which is finite.
        rounded: The `Run` in float32 from weights that were rounded to half.
        tolerance: Share by which the loss of a step may differ from float32's.
    """
    if run.problem:
        return run.problem
    noise = losses_off(rounded.losses, reference.losses)
    for index, off in enumerate(losses_off(run.losses, reference.losses)):
        if off > max(tolerance, ROUNDINGS * max(noise[: index + 1], default=0.0)):
            ours, theirs = run.losses[index], reference.losses[index]
            return f"the loss of step {index + 1} is {ours:.4g}, {off:.0%} off {theirs:.4g}"
    off = gradients_off(run.gradients, reference.gradients)
    if off > max(GRADIENT, ROUNDINGS * gradients_off(rounded.gradients, reference.gradients)):
        return f"the first step's gradients are {off:.0%} off float32's"
    return None


def losses_off(ours, theirs) -> list[float]:
    """How far losses are off others, as shares of these; of as many steps as both have."""
    pairs = zip(ours, theirs, strict=False)
    off = [abs(a - b) / max(abs(b), SMALLEST_LOSS) for a, b in pairs]
    return [x for x in off if math.isfinite(x)]


def gradients_off(ours, theirs) -> float:
    """Norm of the difference of two lists of arrays, as a share of the second's norm."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    norm = math.sqrt(sum(float(np.sum(np.square(b, dtype=np.float64))) for _, b in pairs))
    square = sum(float(np.sum(np.square(np.subtract(a, b, dtype=np.float64)))) for a, b in pairs)
    off = math.sqrt(square) / norm if norm else 0.0
    return off if math.isfinite(off) else 0.0
