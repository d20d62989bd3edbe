"""What half precision will break in a model, found before it does."""

import numpy as np

from tfmp.doctor.fallback import Fallback, search
from tfmp.doctor.finding import SEVERITIES, Finding
from tfmp.doctor.mend import fix
from tfmp.doctor.rules import RULES
from tfmp.doctor.subject import examine

__all__ = ["Fallback", "Finding", "diagnose", "fix", "search"]


def diagnose(model, inputs=None, labels=None, loss=None, optimizer=None) -> list[Finding]:
    """Looks for what half precision breaks in a model.

    Args:
        model: A Keras model: functional, Sequential or subclassed, compiled or not.
        inputs: A batch as the model takes it; None: from the inputs that the model declares.
        labels: The batch's labels, as `fit` takes them.
        loss: A loss in place of that of `compile`.
        optimizer: What applies the gradients, in place of the model's own optimizers; a name is
            taken as `compile` takes it.

    Returns:
        The findings, errors first.
    """
    with np.errstate(all="ignore"):  # infinities are what it looks for
        subject = examine(model, loss, optimizer, inputs)
        found = [finding for rule in RULES.values() for finding in rule(subject)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
