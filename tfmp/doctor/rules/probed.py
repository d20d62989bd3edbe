"""What the rules of probing share, and those of the run itself."""

from collections.abc import Iterator

from tfmp.doctor.finding import Finding, Severity
from tfmp.doctor.probe.values import Fault
from tfmp.doctor.subject import Subject

# Doublings left to the largest float16; with fewer a finding says so.
HEADROOM = 2.0
# What float16 holds with 4 bits or more.
HOLDS = 2.0**-20
# Error, and loss of a gradient by its norm, from which a finding is an error.
GRAVE = 0.3


def little_headroom(subject: Subject) -> Iterator[Finding]:
    """A layer's float16 outputs are within a factor of four of 65504.

    Nothing is wrong on this batch. Weights grow in training, and other inputs are larger.

    Example:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(20000.0)])

    Mend:
        Scale the inputs, put a normalization before the layer, or give it `dtype="float32"`.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2, on the range.
    """
    for span in subject.probe.spans if subject.probe else ():
        near = span.headroom is not None and span.headroom < HEADROOM
        if near and span.dtype == "float16" and not _faulty(subject, span.layer):
            yield Finding(
                "little_headroom",
                "info",
                span.layer,
                f"Its outputs reach {span.largest:.4g}, {span.headroom:.1f} doublings from the "
                "largest float16.",
                {
                    "largest": span.largest,
                    "headroom_bits": span.headroom,
                    "drawn": subject.probe.drawn,
                },
            )


def not_probed(subject: Subject) -> Iterator[Finding]:
    """The model raises an error on the batch, in float32 too, so the doctor can't say more.

    Either the batch isn't what the model takes, or the device lacks an operation, such as the
    gradient of a grouped convolution on a CPU.

    Example:
        diagnose(model, inputs=np.zeros((4, 3)))  # of a model that takes 4 features

    Mend:
        Give the batch, labels and loss that `fit` gets.

    References:
        None: it is about the doctor itself.
    """
    probe = subject.probe
    if probe is not None and probe.error is not None and not probe.faults:
        first = probe.error.strip().split("\n")[0][:200]
        yield Finding("not_probed", "info", None, f"Running the model failed: {first}")
    for text in probe.unjudged if probe else ():
        yield Finding("not_probed", "info", None, f"A layer couldn't be run alone: {text[:200]}")


def faults(subject: Subject, direction: str, *kinds: str) -> list[Fault]:
    """What probing found, of some kinds; nothing where the model wasn't run."""
    found = subject.probe.faults if subject.probe else ()
    return [x for x in found if x.direction == direction and x.kind in kinds]


def own(subject: Subject, fault: Fault) -> bool:
    """Whether a fault is the layer's own, and no lack of a loss scale.

    Without one it is the layer's own if float16 could hold the gradient that was lost.
    """
    flushed = fault.direction == "backward" and fault.kind == "flush"
    unscaled = fault.dtype == "float16" and subject.probe.wanted_scale is None
    return not (flushed and unscaled and fault.largest_output < HOLDS)


def finding(rule: str, subject: Subject, fault: Fault, text: str) -> Finding:
    """A finding of a fault: what it was measured on decides how sure it is."""
    small = fault.error is not None and fault.error < GRAVE
    guess = subject.probe.drawn or (subject.probe.guessed and fault.direction == "backward")
    severity: Severity = "warning" if small or fault.behind or guess else "error"
    text += f", first in {fault.operation}. " if fault.operation and not fault.inner else ". "
    if fault.behind:
        text += "Seen once the layers at fault before it compute in float32. "
    if subject.probe.drawn:
        text += "Seen on random inputs: give a batch to be sure. "
    mends = (fault.layer,) if fault.is_layer and fault.layer is not None else ()
    if mends:
        text += 'Give it dtype="float32".'
    elif fault.takes_cast is not None:
        text += "Give the model whole numbers as integers, or make it with autocast=False."
    elif fault.layer:
        text += "Cast what this operation takes to float32."
    elif fault.direction == "backward" and fault.kind in ("overflow", "nan"):
        text += "Cast what the loss, or the model's own call, takes to float32."
    else:
        text += "Cast to float32 in the model's own call."
    evidence = {
        "dtype": fault.dtype,
        "operation": fault.operation,
        "error": fault.error,
        "explained": fault.explained,
        "largest_input": fault.largest_input,
        "largest_output": fault.largest_output,
        "drawn": subject.probe.drawn,
    }
    known = {k: v for k, v in evidence.items() if v is not None}
    return Finding(rule, severity, fault.layer, text, known, mends)


def percent(share: float | None) -> str:
    """A share in percent, to two digits."""
    return "nothing" if share is None else f"{100 * share:.2g} %"


def _faulty(subject, layer) -> bool:
    return any(x.layer == layer for x in subject.probe.faults)
