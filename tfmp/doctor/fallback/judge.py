"""Whether a few steps in half precision did what they do in float32: pure functions of both."""

import math

import numpy as np

# How far a variable's gradient in the first step may be off float32's, as a share of its norm:
# zeros in its place are 1. In the recipes rounding makes 0.24 at most, of bfloat16.
GRADIENT = 0.5
# Gradients of a smaller share of the whole gradient's norm don't count: a convolution's bias before
# a BatchNormalization has nothing but rounding for a gradient.
SMALLEST_GRADIENT = 1e-3
# In a model that amplifies rounding, losses and gradients may be off by this many times what they
# are in float32 where only the weights are rounded: activations are rounded in each layer, too.
ROUNDINGS = 4
# A loss below this is compared as if it were this.
SMALLEST_LOSS = 1e-3


def problem(run, reference, rounded, tolerance) -> str | None:
    """What is wrong with a run, in a few words; None: nothing.

    Args:
        run: A `Run` of the trial, which may have made fewer steps.
        reference: The `Run` in float32, which is finite.
        rounded: The `Run` in float32 from weights that were rounded to half.
        tolerance: Share by which the loss of a step may differ from float32's.
    """
    if run.problem:
        return run.problem
    noise = losses_off(rounded.losses, reference.losses)
    for index, off in enumerate(losses_off(run.losses, reference.losses)):
        if off > max(tolerance, ROUNDINGS * max(noise[: index + 1], default=0.0)):
            ours, theirs = f"{run.losses[index]:.4g}", f"{reference.losses[index]:.4g}"
            return f"the loss of step {index + 1} is {ours}, {off:.0%} off float32's {theirs}"
    shares = gradients_off(run.gradients, reference.gradients)
    shaken = gradients_off(rounded.gradients, reference.gradients)
    beyond = [i for i in shares if shares[i] > max(GRADIENT, ROUNDINGS * shaken.get(i, 0.0))]
    if beyond:
        worst = max(beyond, key=shares.__getitem__)
        name, share = reference.names[worst], shares[worst]
        return f"the first gradient of {name} is {share:.0%} off float32's"
    return None


def losses_off(ours, theirs) -> list[float]:
    """How far losses are off others, as shares of these; of as many steps as both have."""
    pairs = zip(ours, theirs, strict=False)
    off = [abs(a - b) / max(abs(b), SMALLEST_LOSS) for a, b in pairs]
    return [x for x in off if math.isfinite(x)]


def gradients_off(ours, theirs) -> dict[int, float]:
    """How far gradients are off others, as shares of these' norms.

    Args:
        ours: Arrays, or None where a variable has no gradient.
        theirs: As many.

    Returns:
        Dict by index, of those with a share of the whole norm that counts.
    """
    norms = {i: _norm(b) for i, b in enumerate(theirs) if b is not None}
    least = SMALLEST_GRADIENT * math.hypot(*norms.values())
    off = {}
    for index, a in enumerate(ours):
        if a is not None and norms.get(index, 0.0) > least:
            off[index] = _norm(np.subtract(a, theirs[index], dtype=np.float64)) / norms[index]
    return {index: share for index, share in off.items() if math.isfinite(share)}


def _norm(array) -> float:
    return math.sqrt(float(np.sum(np.square(array, dtype=np.float64))))
