"""What half precision will break in a model, found before it does."""

import dataclasses

import numpy as np

from tfmp.doctor.fallback import Fallback, search
from tfmp.doctor.finding import SEVERITIES, Finding
from tfmp.doctor.mend import fix
from tfmp.doctor.probe import probe
from tfmp.doctor.rules import RULES
from tfmp.doctor.subject import examine

__all__ = ["Fallback", "Finding", "diagnose", "fix", "search"]


def diagnose(model, inputs=None, labels=None, loss=None, optimizer=None) -> list[Finding]:
    """Looks for what half precision breaks in a model.

    Args:
        model: A Keras model: functional, Sequential or subclassed, compiled or not.
        inputs: A batch as the model takes it: the model is run on it too, a training step in its
            own precision and in float32, layer by layer; its variables stay as they are. "random":
            a small batch is drawn by the inputs that the model declares. None: the model isn't run.
        labels: The batch's labels, as `fit` takes them; None: random ones.
        loss: A loss in place of that of `compile`.
        optimizer: What applies the gradients, one or a list, in place of the model's own
            optimizers; a name is taken as `compile` takes it.

    Returns:
        The findings, errors first.
    """
    drawn = isinstance(inputs, str) and inputs == "random"
    given = None if drawn else inputs
    with np.errstate(all="ignore"):  # infinities are what it looks for
        subject = examine(model, loss, optimizer, given, labels)
        if inputs is not None:
            subject = dataclasses.replace(subject, probe=probe(subject, given, labels))
        found = [finding for rule in RULES.values() for finding in rule(subject)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
