"""What a run must have come to at its end, or it ends as one that became non-finite."""

import math

from tfmp import loss_scale
from tfmp.errors import NonFiniteError
from tfmp.training import callbacks

# One or two skipped steps are how a loss scale finds its place.
FEWEST_SKIPS = 3
FALLING = (
    " In a run of few steps the loss scale may still have been falling: train more --epochs, or "
    "lower --initial_scale."
)


def check_training(learner, steps_per_epoch, session, *, validated=True):
    """Sees that the last epoch had a good step, and a finite loss on the validation examples.

    What was before may have been lost to a loss scale that was still falling.

    Args:
        learner: The trained `tfmp.training.Learner`.
        steps_per_epoch: Training steps of a whole epoch.
        session: A `tfmp.training.Session`.
        validated: Whether there were validation examples; the log has no numbers of them else.

    Raises:
        NonFiniteError: It hasn't.
    """
    if callbacks.skipped_all(learner, max(int(learner.step), 1)):
        _end(learner, "the gradients of every step of the run")
    if callbacks.skipped_all(learner, max(steps_per_epoch, FEWEST_SKIPS)):
        _end(learner, "the gradients of every step of the last epoch")
    if validated:
        rows = callbacks.epochs_before(session.worker, session.workdir / "metrics.csv")
        check(learner, "val", rows[-1] if rows else {})


def check(learner, prefix, values):
    """Sees that a loss is finite, or what a learner without one goes by.

    Args:
        learner: The trained `tfmp.training.Learner`.
        prefix: "val" or "test".
        values: Dict of floats, whose keys begin with it.

    Raises:
        NonFiniteError: It isn't.
    """
    names = [f"{prefix}_loss", f"{prefix}_{learner.monitor}"]
    name = next((name for name in names if name in values), None)
    if name and not math.isfinite(values[name]):
        _end(learner, f"{name} is {values[name]} at the end")


def _end(learner, what):
    step, scale = int(learner.step), float(loss_scale.scale(learner.optimizer))
    raise NonFiniteError(
        f"Training became non-finite: {what}, at step {step}, loss scale now {scale:g}. "
        f"{callbacks.ADVICE} The checkpoint has the weights of the last good step."
        + (FALLING if loss_scale.is_dynamic(learner.optimizer) and scale > 1 else "")
    )
