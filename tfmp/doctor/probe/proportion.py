"""Whether what a `train_step` hands to its optimizers grows with their loss scale."""

from collections.abc import Callable

import numpy as np

from tfmp.doctor.probe import compare
from tfmp.doctor.probe.step import Step
from tfmp.doctor.subject import Subject, scales

# Scale of the second step, in float32; far from 1, and far from what overflows.
SCALE = 2.0**10
# What clipping or a penalty may do to the norm of gradients and still be meant so.
TOLERATED = 4.0


def off_scale(
    subject: Subject, run: Callable[..., Step], plain: Step
) -> tuple[tuple[str, float], ...]:
    """Compares the gradients of two steps in float32, whose loss scales are 1 and `SCALE`.

    An optimizer divides what it gets by its loss scale. Gradients that are not scaled, are unscaled
    twice, or are clipped while they are scaled, don't grow with it as they should.

    Args:
        subject: The model.
        run: Runs a step, as `take` does.
        plain: The step in float32 with a scale of 1.

    Returns:
        Pairs of an optimizer's name and how many times as large as they should be its gradients
        are; of those where that is not 1.
    """
    scaling = [(name, x) for name, x in subject.optimizers if scales(x)]
    if not scaling:
        return ()
    scaled = run(full=True, scale=SCALE)
    found = []
    for name, optimizer in scaling:
        trained = optimizer._trainable_variables if optimizer.built else []
        ids = [id(v) for v in trained] or list(plain.gradients)
        ids = [i for i in ids if i in plain.gradients and i in scaled.gradients]
        before, after = (_norm(step, ids) for step in (plain, scaled))
        if before > 0 and np.isfinite(after):
            factor = after / before / SCALE
            if not 1 / TOLERATED < factor < TOLERATED:
                found.append((name, factor))
    return tuple(found)


def _norm(step, ids) -> float:
    return float(np.sqrt(sum(np.sum(_squares(step.gradients[i])) for i in ids)))


def _squares(gradient):
    return np.square(compare.array(gradient).astype(np.float64))
