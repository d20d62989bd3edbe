"""What probing found: frozen values, which the rules read."""

import dataclasses
from typing import Literal

Kind = Literal["raises", "overflow", "nan", "flush", "departure", "cancels", "chooses"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A layer that computes something else in half than in float32, from the same inputs.

    Attributes:
        layer: Name or path; None: what the model itself does around its layers.
        is_layer: Whether it is a layer, which can be put in float32; else an operation.
        direction: "forward", or "backward": in the gradients it passes on or those of its weights.
        kind: "raises": an error where float32 has none; "overflow": infinite where float32 is
            finite; "nan"; "flush": most of what differs is zero; "departure": it differs otherwise;
            "cancels": what it takes is right but for rounding, and nothing of what it gives;
            "chooses": another element is the largest or the smallest, `error` the share of these.
        dtype: The half dtype.
        operation: TensorFlow operation within which finite numbers became infinite or NaN first,
            such as "Sum"; None where that isn't so, or couldn't be seen.
        inner: Whether `operation` overflowed while what the layer takes and gives is finite.
        error: Difference from float32 by that of float32, both as root mean squares; None where
            half isn't finite.
        explained: The same, as far as rounding the inputs explains it.
        largest_input: Largest finite magnitude that it took.
        largest_output: Largest magnitude that it gives in float32.
        behind: Whether it was found only once layers before it computed in float32.
        takes_cast: Where the model itself is at fault, since it casts its inputs: the layer that
            takes them; else None.
    """

    layer: str | None
    is_layer: bool
    direction: Literal["forward", "backward"]
    kind: Kind
    dtype: str
    operation: str | None = None
    inner: bool = False
    error: float | None = None
    explained: float | None = None
    largest_input: float = 0.0
    largest_output: float = 0.0
    behind: bool = False
    takes_cast: str | None = None


@dataclasses.dataclass(frozen=True)
class Span:
    """How far the outputs of a layer reach.

    Attributes:
        layer: Name or path; None: the model.
        dtype: Dtype of the largest.
        largest: Largest finite magnitude.
        headroom: Doublings left to the dtype's largest number, bits; None where all is zero.
    """

    layer: str | None
    dtype: str
    largest: float
    headroom: float | None


@dataclasses.dataclass(frozen=True)
class Underflow:
    """How much of a layer's weight gradients, or updates, half loses.

    Attributes:
        layer: Name or path of the layer; None: the model's own weights.
        unscaled: Share of the gradient's numbers that are zero in half and not in float32, without
            loss scale.
        scaled: The same with the loss scale `Probe.scale`; None where nothing scales the loss.
        lost: Norm of what is lost, at the scale that training has, by the norm of all.
        updates: Share of the weights that a step moves in float32 and not in their own dtype; None
            where the weights are float32.
    """

    layer: str | None
    unscaled: float
    scaled: float | None
    lost: float
    updates: float | None


@dataclasses.dataclass(frozen=True)
class Probe:
    """What running a model on a batch found.

    Attributes:
        drawn: Whether the inputs were random, by what the model declares.
        guessed: Whether the gradients are those of a random sum of outputs, for lack of a loss.
        faults: Where half departs from float32, in the order in which it was found.
        spans: How far each layer's outputs reach, in the order of their calls.
        underflows: Of each layer with weights that get gradients.
        error: What the step raised in both precisions, which ended the probe; None: nothing.
        unjudged: What went wrong where layers couldn't be run again alone.
        scale: Largest power of two up to the optimizer's loss scale at which the gradients are
            finite; 1.0 where nothing scales the loss; None where none is.
        wanted_scale: The optimizer's loss scale; None where nothing scales the loss.
        limiting: The layer whose gradient, the largest in float16, keeps the scale at `scale`.
        off_scale: By the names of optimizers that scale: factor by which the gradients that a
            `train_step` of the model's own hands over miss the scale; those of 1 are left out.
    """

    drawn: bool
    faults: tuple[Fault, ...] = ()
    spans: tuple[Span, ...] = ()
    underflows: tuple[Underflow, ...] = ()
    scale: float | None = 1.0
    wanted_scale: float | None = None
    error: str | None = None
    unjudged: tuple[str, ...] = ()
    off_scale: tuple[tuple[str, float], ...] = ()
    guessed: bool = False
    limiting: str | None = None
