"""The doctor's rules, by name: each a function of a `Subject` that yields findings.

A rule's docstring is its section of `docs/hazards.md`. A new rule is a function in a file of this
folder and a line of `RULES`.
"""

from collections.abc import Callable, Iterable

from tfmp.doctor.finding import Finding
from tfmp.doctor.rules import probed, variables
from tfmp.doctor.subject import Subject

__all__ = ["RULES"]

RULES: dict[str, Callable[[Subject], Iterable[Finding]]] = {
    "half_variables": variables.half_variables,
    "half_overflow": probed.half_overflow,
    "inner_overflow": probed.inner_overflow,
    "flush_to_zero": probed.flush_to_zero,
    "leaves_float32": probed.leaves_float32,
    "fails_in_half": probed.fails_in_half,
    "backward_overflow": probed.backward_overflow,
    "backward_loss": probed.backward_loss,
    "gradient_underflow": probed.gradient_underflow,
    "update_underflow": probed.update_underflow,
    "little_headroom": probed.little_headroom,
    "not_probed": probed.not_probed,
}
