"""Constants that half precision can't hold."""

import math
from collections.abc import Iterator

import tensorflow as tf

from tfmp.doctor import flow
from tfmp.doctor.finding import SEVERITIES, Finding
from tfmp.doctor.ranges import Range, of
from tfmp.doctor.subject import Subject

# What makes an infinity or a NaN out of an infinite constant, whatever it meets.
ALWAYS = {"Mul", "AddV2", "Add", "Sub", "RealDiv", "BiasAdd", "MatMul", "BatchMatMulV2", "Pow"}
# Bounds that no half value passes anyway, and comparisons that come out the same.
HARMLESS = {"ClipByValue", "Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual"}
# What has no finite value, or no finite gradient, at zero; and the input that it is about.
SINGULAR = {"Rsqrt": 0, "Sqrt": 0, "Log": 0, "Reciprocal": 0, "Inv": 0, "RealDiv": 1, "Pow": 0}
GUARDS = flow.SAME | {"AddV2", "Add", "Maximum", "Sum", "Mean"}


def constant_overflow(subject: Subject) -> Iterator[Finding]:
    """A constant or mask beyond 65504 is infinite in float16.

    Masks of -1e9 are customary in float32. In float16 the largest number is 65504: -1e9 becomes
    -inf, (1 - mask) * -1e9 becomes 0 * -inf = NaN where nothing is masked, and a row in which all
    is masked becomes NaN in the softmax. bfloat16 has float32's range and isn't affected.

    Example:
        class Masked(keras.layers.Layer):
            def call(self, scores, mask):  # NaN wherever mask is 1
                mask = keras.ops.cast(mask, scores.dtype)
                return keras.ops.softmax(scores + (1 - mask) * -1e9)

        masked = Masked(dtype="mixed_float16")
        masked(keras.ops.zeros((1, 2)), keras.ops.ones((1, 2)))

    Mend:
        Compute scores, mask and softmax in float32, or take a mask within the range, such as
        -30000, by `keras.ops.where(mask, scores, -3e4)`. `fix` puts the layer in float32.

    References:
        https://github.com/huggingface/transformers/issues/382
        https://github.com/google/flax/issues/982
        https://github.com/keras-team/keras/pull/17571
    """
    for name, found in _by_layer(subject, _overflows).items():
        operation, value, severity = max(found, key=lambda x: (x[2] == "error", abs(x[1])))
        dtype = operation.outputs[0].dtype
        yield Finding(
            "constant_overflow",
            severity,
            name,
            f"A constant of {value:g} is infinite in {dtype.name}, whose largest number is "
            f"{flow.largest(dtype):g}: "
            + (
                "what it is multiplied with or added to becomes infinite or NaN."
                if severity == "error"
                else "where all of a softmax's row is masked, NaN comes out."
            )
            + " Compute the layer in float32, or take a constant within the range, such as -3e4 "
            "for a mask.",
            {"value": value, "largest": flow.largest(dtype), "operation": operation.type},
            subject.float32(name),
        )


def constant_underflow(subject: Subject) -> Iterator[Finding]:
    """An epsilon that is zero in float16 guards nothing.

    float16 rounds what is below 2^-25 (3e-8) to zero. 1e-8 or 1e-12 under a square root, a
    logarithm or a fraction is then no guard: a row of zeros gives 0 / 0 = NaN. An epsilon up to
    1.5e-5 is kept, yet 1 / epsilon is beyond 65504.

    Example:
        class Normalized(keras.layers.Layer):
            def call(self, x):  # NaN for a row of zeros
                return x / (keras.ops.sqrt(keras.ops.sum(x * x, -1, keepdims=True)) + 1e-8)

        Normalized(dtype="mixed_float16")(keras.ops.zeros((1, 4)))

    Mend:
        Compute the layer in float32, which `fix` does, or take an epsilon of 1e-4 or more.

    References:
        https://github.com/pytorch/pytorch/issues/61954
        https://github.com/keras-team/keras/issues/11832
    """
    for name, found in _by_layer(subject, _underflows).items():
        operation, value, severity = min(found, key=lambda x: SEVERITIES.index(x[2]))
        dtype = operation.outputs[0].dtype
        lost = abs(value) <= flow.smallest(dtype)
        yield Finding(
            "constant_underflow",
            severity,
            name,
            (
                f"A constant of {value:g} is zero in {dtype.name}: "
                if lost
                else f"A fraction over {value:g} passes {dtype.name}'s largest number, "
                f"{flow.largest(dtype):g}: "
            )
            + "the fraction, root or logarithm that it is to guard gives infinity or NaN where the "
            "rest is zero. Compute the layer in float32, or take 1e-4 or more.",
            {"value": value, "smallest": flow.smallest(dtype), "operation": operation.type},
            subject.float32(name),
        )


def _by_layer(subject, hazards):
    found: dict[str | None, list] = {}
    everywhere = (x for looked in subject.everywhere for x in hazards(looked))
    for operation, value, severity in everywhere:
        found.setdefault(subject.path(operation), []).append((operation, value, severity))
    return found


def _half_constants(subject):
    """(operation, range of what it was in float32) of each half constant, also of cast ones."""
    for operation in subject.trace.operations:
        if not operation.outputs or not flow.is_half(operation.outputs[0]):
            continue
        if operation.type == "Const" and id(operation) in subject.trace.originals:
            yield operation, of(subject.ranges, operation.outputs[0])
        elif operation.type == "Cast" and not flow.is_half(operation.inputs[0]):
            given = of(subject.ranges, operation.inputs[0])
            if given.known:
                yield operation, given


def _overflows(subject):
    for operation, given in _half_constants(subject):
        dtype = operation.outputs[0].dtype
        # What is not quite half a step above the largest number is rounded down to it.
        if not given.known or given.largest < flow.largest(dtype) * (1 + 2.0**-12):
            continue
        value = given.low if abs(given.low) > abs(given.high) else given.high
        if dtype == tf.bfloat16 or (operation.type == "Cast" and given.ids):
            continue  # ids have a rule of their own
        severity = _overflow_severity(operation, value, given)
        if severity:
            yield operation, value, severity


def _overflow_severity(operation, value, given: Range):
    always = given.low == given.high
    found = None
    for user, _ in flow.uses(operation.outputs[0]):
        bound = {"Minimum": value > 0, "Maximum": value < 0}.get(user.type, False)
        if user.type in HARMLESS or bound:
            continue
        if (user.type in ALWAYS and always) or user.type == "Mul":
            return "error"
        found = "warning"
    return found


def _underflows(subject):
    for operation, given in _half_constants(subject):
        value = given.high
        if given.low != given.high or not value or not math.isfinite(value):
            continue
        tensor = operation.outputs[0]
        if abs(value) <= flow.smallest(tensor.dtype):
            users = list(flow.uses(tensor))
            if any(x.type in ("Mul", "BiasAdd") or (x.type == "RealDiv" and i) for x, i in users):
                yield operation, value, "error"
            elif any(SINGULAR.get(x.type) == i for x, i in flow.uses(tensor, GUARDS)):
                yield operation, value, "warning"
        elif 0 < value * flow.largest(tensor.dtype) < 1:
            through = flow.SAME | {"AddV2", "Add", "Maximum"}
            for user, index in flow.uses(tensor, through):
                division = user.type == "RealDiv" and index == 1
                if user.type in ("Reciprocal", "Inv") or division:
                    over = not division or _passes(subject, user, value)
                    yield operation, value, "warning" if over else "info"
                    break


def _passes(subject, division, value) -> bool:
    above = of(subject.ranges, division.inputs[0])
    largest = flow.largest(division.outputs[0].dtype)
    return above.constant is not None and above.largest / value > largest
