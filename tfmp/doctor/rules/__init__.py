"""The doctor's rules, by name: each a function of a `Subject` that yields findings.

A rule's docstring is its section of `docs/hazards.md`. A new rule is a function in a file of this
folder and a line of `RULES`.
"""

from collections.abc import Callable, Iterable

from tfmp.doctor.finding import Finding
from tfmp.doctor.rules import variables
from tfmp.doctor.subject import Subject

__all__ = ["RULES"]

RULES: dict[str, Callable[[Subject], Iterable[Finding]]] = {
    "half_variables": variables.half_variables,
}
