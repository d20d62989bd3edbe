"""Between which bounds the tensors of a trace lie, where its operations say it.

Interval arithmetic in exact numbers, as if no tensor were half: a bound beyond what half can hold
is what the rules look for. Nothing is known of inputs but what their dtype says, and that ids look
rows of a table up.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import tensor_util  # tf.get_static_value has no limit of size

from tfmp.doctor import tables

UNKNOWN = (-math.inf, math.inf)

# Operations that move values, or choose out of them, and the inputs that they move (None: all).
MOVING: dict[str, int | None] = {
    "Cast": 1,
    "Identity": 1,
    "Snapshot": 1,
    "Reshape": 1,
    "Squeeze": 1,
    "ExpandDims": 1,
    "Transpose": 1,
    "StridedSlice": 1,
    "Slice": 1,
    "Tile": 1,
    "BroadcastTo": 1,
    "ReverseV2": 1,
    "Max": 1,
    "Min": 1,
    "Mean": 1,
    "MaxPool": 1,
    "AvgPool": 1,
    "StopGradient": 1,
    "PreventGradient": 1,
    "EnsureShape": 1,
    "Gather": 1,
    "GatherV2": 1,
    "GatherNd": 1,
    "Pack": None,
    "Floor": 1,
    "Ceil": 1,
    "Round": 1,
    "Rint": 1,
}

FIXED = {
    "Softmax": (0.0, 1.0),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
    "Sign": (-1.0, 1.0),
    "Relu6": (0.0, 6.0),
    "RandomUniform": (0.0, 1.0),
    "StatelessRandomUniformV2": (0.0, 1.0),
}

INTEGRAL = ("Range", "StringToHashBucketFast", "StringToHashBucketStrong", "Floor", "Ceil", "Round")

LARGEST_FLOAT16 = 65504

LARGEST_CONSTANT = 2**20


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a tensor's elements.

    Attributes:
        low: No element is below it.
        high: No element is above it.
        integral: Whether all are integers.
    """

    low: float
    high: float
    integral: bool = False

    @property
    def known(self) -> bool:
        """Whether both bounds are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def constant(self) -> float | None:
        """The one number that all elements are; None: they may differ."""
        return self.low if self.known and self.low == self.high else None

    @property
    def ids(self) -> bool:
        """Whether they may be ids, positions or counts: several integers, and no mask."""
        several = self.known and self.integral and self.low != self.high
        return several and (self.low >= 0 or self.largest <= LARGEST_FLOAT16)

    @property
    def largest(self) -> float:
        """The larger of both bounds' absolute values."""
        return max(abs(self.low), abs(self.high))


def ranges(trace) -> dict[tuple[int, int], Range]:
    """The bounds of each output of each operation.

    Args:
        trace: A `tfmp.doctor.trace.Trace`.

    Returns:
        Ranges by (operation's id, number of its output); those missing are unknown.
    """
    found: dict[tuple[int, int], Range] = {}
    rows = tables.rows(trace)
    for operation in trace.operations:
        for index, tensor in enumerate(operation.outputs):
            key = (id(operation), index)
            low, high, integral = *_by_dtype(tensor.dtype), tensor.dtype.is_integer
            if index == 0:
                bounds = _bounds(operation, found, trace)
                low, high = max(low, bounds.low), min(high, bounds.high)
                integral = integral or bounds.integral
            if key in rows:
                low, high = max(low, 0.0), min(high, rows[key] - 1.0)
            if (low, high) != UNKNOWN or integral:
                found[key] = Range(low, high, integral)
    return found


def of(found, tensor) -> Range:
    """The range of a tensor, out of what `ranges` returned."""
    return found.get((id(tensor.op), tensor.value_index), Range(*UNKNOWN))


def _by_dtype(dtype) -> tuple[float, float]:
    if dtype == tf.bool:
        return 0.0, 1.0
    if dtype.is_integer and dtype.size <= 2:
        return float(dtype.min), float(dtype.max)
    return UNKNOWN


def _bounds(operation, found, trace) -> Range:
    kind = operation.type
    if kind == "Const" or id(operation) in trace.originals:
        return _constant(operation, trace)
    if kind in FIXED:
        return Range(*FIXED[kind])
    inputs = [of(found, x) for x in operation.inputs]
    if kind in MOVING:
        moved = inputs[: MOVING[kind]]
        to_integers = operation.outputs[0].dtype.is_integer or kind in INTEGRAL
        return _union(moved, integral=to_integers)
    special = _SPECIAL.get(kind)
    if special is None:
        return Range(*UNKNOWN)
    with np.errstate(all="ignore"):
        return special(operation, inputs)


def _constant(operation, trace) -> Range:
    value = trace.originals.get(id(operation))
    if value is None:
        tensor = operation.outputs[0]
        size = tensor.shape.num_elements()
        if not size or size > LARGEST_CONSTANT or tensor.dtype == tf.string:
            return Range(*UNKNOWN)
        value = tensor_util.constant_value(tensor)
    value = np.asarray(value)
    if value.dtype.kind not in "fiub" and value.dtype != tf.bfloat16.as_numpy_dtype:
        return Range(*UNKNOWN)
    value = value.astype("float64")
    if not value.size or np.isnan(value).any():
        return Range(*UNKNOWN)
    return Range(float(value.min()), float(value.max()), bool((value == np.floor(value)).all()))


def _union(inputs, integral=False) -> Range:
    if not inputs:
        return Range(*UNKNOWN)
    return Range(
        min(x.low for x in inputs),
        max(x.high for x in inputs),
        integral or all(x.integral for x in inputs),
    )


def _corners(function):
    """Bounds of a function that takes its extremes at the corners of its inputs' bounds."""

    def bounds(operation, inputs):
        a, b = inputs[:2]
        if not (a.known and b.known):
            return Range(*UNKNOWN)
        values = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        if not all(math.isfinite(v) for v in values):
            return Range(*UNKNOWN)
        return Range(min(values), max(values), a.integral and b.integral)

    return bounds


def _rising(function):
    """Bounds of a function of one input that never falls."""

    def bounds(operation, inputs):
        (a,) = inputs[:1]
        low = function(a.low) if a.low > -math.inf else -math.inf
        high = function(a.high) if a.high < math.inf else math.inf
        return Range(low, high)

    return bounds


def _divide(operation, inputs):
    if inputs[1].low <= 0 <= inputs[1].high:
        return Range(*UNKNOWN)
    found = _corners(lambda x, y: x / y)(operation, inputs)
    return dataclasses.replace(found, integral=False)


def _square(operation, inputs):
    (a,) = inputs
    low = 0.0 if a.low <= 0 <= a.high else min(a.low**2, a.high**2)
    return Range(low, a.largest**2 if a.largest < 1e150 else math.inf, a.integral)


def _maximum(operation, inputs):
    a, b = inputs[:2]
    return Range(max(a.low, b.low), max(a.high, b.high), a.integral and b.integral)


def _minimum(operation, inputs):
    a, b = inputs[:2]
    return Range(min(a.low, b.low), min(a.high, b.high), a.integral and b.integral)


def _clip(operation, inputs):
    return _minimum(operation, [_maximum(operation, [inputs[0], inputs[1]]), inputs[2]])


def _range(operation, inputs):
    start, limit, step = inputs
    if not (start.known and limit.known and step.known) or step.low != step.high or not step.low:
        return Range(*UNKNOWN)
    count = max(math.ceil((limit.high - start.low) / step.low), 1)
    ends = start.low, start.low + (count - 1) * step.low
    return Range(min(ends), max(ends), all(x.integral for x in inputs))


def _repeated(operation, inputs, sizes):
    count = math.prod(sizes) if all(size is not None for size in sizes) else math.inf
    a = inputs[0]
    if not a.known or math.isinf(count):
        return Range(min(a.low, 0.0) if a.low >= 0 else -math.inf, math.inf, a.integral)
    return Range(min(a.low, a.low * count), max(a.high, a.high * count), a.integral)


def _axes(operation):
    axes = tensor_util.constant_value(operation.inputs[1])
    shape = operation.inputs[0].shape
    if axes is None or shape.rank is None:
        return [None]
    return [shape.as_list()[axis] for axis in np.atleast_1d(axes)]


def _place(operation, inputs):
    """The number of an element along an axis."""
    (size,) = _axes(operation)
    return Range(0.0, size - 1.0 if size else math.inf, True)


_SPECIAL = {
    "Add": _corners(lambda x, y: x + y),
    "AddV2": _corners(lambda x, y: x + y),
    "BiasAdd": _corners(lambda x, y: x + y),
    "Sub": _corners(lambda x, y: x - y),
    "Mul": _corners(lambda x, y: x * y),
    "RealDiv": _divide,
    "Maximum": _maximum,
    "Minimum": _minimum,
    "ClipByValue": _clip,
    "Square": _square,
    "Neg": lambda operation, inputs: Range(-inputs[0].high, -inputs[0].low, inputs[0].integral),
    "Abs": lambda operation, inputs: Range(
        0.0 if inputs[0].low <= 0 <= inputs[0].high else min(abs(inputs[0].low), inputs[0].high),
        inputs[0].largest,
        inputs[0].integral,
    ),
    "Relu": _rising(lambda x: max(x, 0.0)),
    "Exp": _rising(lambda x: math.exp(x) if x < 700 else math.inf),
    "Sqrt": _rising(lambda x: math.sqrt(max(x, 0.0))),
    "Select": lambda operation, inputs: _union(inputs[1:]),
    "SelectV2": lambda operation, inputs: _union(inputs[1:]),
    "ConcatV2": lambda operation, inputs: _union(inputs[:-1]),
    "Fill": lambda operation, inputs: inputs[1],
    "PadV2": lambda operation, inputs: _union([inputs[0], inputs[2]]),
    "Pad": lambda operation, inputs: _union([inputs[0], Range(0.0, 0.0, True)]),
    "OneHot": lambda operation, inputs: _union(inputs[2:4]),
    "OnesLike": lambda operation, inputs: Range(1.0, 1.0, True),
    "ZerosLike": lambda operation, inputs: Range(0.0, 0.0, True),
    "FloorMod": lambda operation, inputs: (
        Range(0.0, inputs[1].high - (1 if inputs[1].integral else 0), inputs[0].integral)
        if inputs[1].known and inputs[1].low > 0
        else Range(*UNKNOWN)
    ),
    "StringToHashBucketFast": lambda operation, inputs: Range(
        0.0, operation.get_attr("num_buckets") - 1.0, True
    ),
    "StringToHashBucketStrong": lambda operation, inputs: Range(
        0.0, operation.get_attr("num_buckets") - 1.0, True
    ),
    "Range": _range,
    "ArgMax": _place,
    "ArgMin": _place,
    "Cumsum": lambda operation, inputs: _repeated(operation, inputs, _axes(operation)),
    "Sum": lambda operation, inputs: _repeated(operation, inputs, _axes(operation)),
}
