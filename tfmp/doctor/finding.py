"""What the doctor says: one frozen value a finding."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One hazard of half precision in a model.

    Attributes:
        rule: Name of the rule, as in `docs/hazards.md`.
        severity: "error": will break, or is silently wrong; "warning": breaks for some inputs;
            "info": costs speed or memory.
        layer: The layer's name, or its path where it is nested; None: the model or its optimizer.
        message: What is wrong, why, and what to do.
        evidence: Numbers by name, which JSON can write; what was read or measured.
        float32: Names or paths of the layers that `fix` puts in float32; empty where that is not
            the mend.
    """

    rule: str
    severity: Severity
    layer: str | None
    message: str
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    float32: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks the severity and makes the evidence read-only."""
        if self.severity not in SEVERITIES:
            raise ValueError(f"Expected a severity of {SEVERITIES}. Received: {self.severity!r}")
        object.__setattr__(self, "evidence", MappingProxyType(dict(self.evidence)))
