"""Variables that are half themselves."""

from collections.abc import Iterator

from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject
from tfmp.policies.choice import HALF


def half_variables(subject: Subject) -> Iterator[Finding]:
    """Weights in float16 or bfloat16 lose their small updates.

    A sum in float16 keeps 11 significant bits, in bfloat16 8: an update below 2^-12 (2^-9) of a
    weight is rounded away, and training stalls without a word.
    """
    names = [
        part.path
        for part in subject.parts
        if any(str(v.dtype) in HALF for v in part.layer._trainable_variables)
    ]
    for name in names:
        yield Finding("half_variables", "error", name, "weights are half")
