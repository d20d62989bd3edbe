"""Models that half precision breaks, and look-alikes that are right.

Each file is a family: `BAD` and `CLEAN`, by name. Whoever adds one gets its tests.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Bad:
    """A model that breaks.

    Attributes:
        build: Makes the model, and compiles it where that matters.
        rule: Name of the rule that has to find it.
        layer: The layer that it has to name.
        damaged: Whether a model shows the damage.
        mended: Makes the model as the finding says; None: `fix` does it.
        severity: The least that the finding has to be.
        batch: Inputs and labels, for what only a batch tells.
    """

    build: Callable
    rule: str
    layer: str | None
    damaged: Callable
    mended: Callable | None = None
    severity: str = "warning"
    batch: tuple = ()
