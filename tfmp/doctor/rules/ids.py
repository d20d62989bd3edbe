"""Integers that half precision rounds to their neighbors."""

from collections.abc import Iterator

from tfmp.doctor import flow
from tfmp.doctor.finding import SEVERITIES, Finding
from tfmp.doctor.ranges import of
from tfmp.doctor.subject import Subject
from tfmp.doctor.tables import ids_of, table_rows

MAKING = ("Cast", "Range", "Cumsum", "Fill")


def rounded_ids(subject: Subject) -> Iterator[Finding]:
    """Ids and positions above 2048 are rounded to even ones in float16.

    float16 holds every integer up to 2048, then every second one, and above 4096 every fourth;
    bfloat16 every one up to 256 only. A token, a hash or a position beyond that becomes its
    neighbor, silently: two words share an embedding, two places a position. Keras casts whatever
    float a layer is called with to its compute dtype, so that ids which come as float32 (the
    default of `keras.Input`) are rounded on their way into a composite layer or a subclassed model.

    Example:
        class Embedded(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.table = keras.layers.Embedding(30001, 8)

            def call(self, ids):  # 29998 and 29999 arrive as 30000
                return self.table(keras.ops.cast(ids, "int32"))

        rows = Embedded(dtype="mixed_float16")(np.array([[29998.0, 29999.0]]))
        np.ptp(rows, axis=1)  # zeros: both are the same row

    Mend:
        Give ids as integers, `keras.Input(shape, dtype="int32")`, and keep positions int32 or
        float32 until they are looked up or scaled down. `fix` puts the layer in float32.

    References:
        https://github.com/deepspeedai/DeepSpeed/issues/5701
        IEEE 754-2019, binary16: 11 significant bits.
    """
    worst: dict[str | None, tuple] = {}
    hazards = (x for looked in subject.everywhere for x in _hazards(looked))
    for operation, number, why, severity in hazards:
        name = subject.path(operation)
        former = worst.get(name)
        if former is None or SEVERITIES.index(severity) < SEVERITIES.index(former[3]):
            worst[name] = operation, number, why, severity
    for name, (operation, number, why, severity) in worst.items():
        dtype = operation.outputs[0].dtype
        yield Finding(
            "rounded_ids",
            severity,
            name,
            f"{why} up to {number:g} pass through {dtype.name}, which holds every integer up to "
            f"{flow.integers(dtype)} only: larger ones are rounded to a neighbor. Keep them int32, "
            "or compute the layer in float32.",
            {"largest": number, "exact_up_to": flow.integers(dtype)},
            subject.float32(name),
        )


def _hazards(subject):
    for operation in subject.trace.operations:
        yield from _looked_up(subject, operation)
        yield from _made(subject, operation)
        yield from _scaled(subject, operation)


def _looked_up(subject, operation):
    """Ids of a table that were half on their way."""
    rows = table_rows(operation, subject.trace)
    if not rows or operation.inputs[0].op.type == "Shape":
        return
    passed = list(flow.sources(ids_of(operation), flow.ON_IDS))
    half = [x for x in passed if flow.is_half(x)]
    if half and rows - 1 > flow.integers(half[0].dtype):
        given = any(x.op.type == "Placeholder" and x.dtype == "float32" for x in passed)
        # A model that doesn't say so may get integers, which no layer casts.
        unknown = subject.trace.guessed and given
        why = "Ids, if they are given as floats," if unknown else "Ids"
        # The first of them is where they were rounded.
        yield half[-1].op, rows - 1, why, "info" if unknown else "error"


def _made(subject, operation):
    """Integers of a known range that become half."""
    if operation.type not in MAKING or not flow.is_half(operation.outputs[0]):
        return
    if operation.type == "Cast" and flow.is_half(operation.inputs[0]):
        return
    tensor = operation.outputs[0] if operation.type != "Cast" else operation.inputs[0]
    given = of(subject.ranges, tensor)
    if _only_divides(operation.outputs[0]):
        return  # a count by which a sum is divided: an error of 2^-12 is rounding like any other
    if given.ids and given.largest > flow.integers(operation.outputs[0].dtype):
        yield operation, given.largest, "Integers", "error"


def _only_divides(tensor) -> bool:
    used = list(flow.uses(tensor, flow.SAME | {"Maximum"}))
    return bool(used) and all(
        user.type in ("Reciprocal", "Inv", "Rsqrt") or (user.type == "RealDiv" and index == 1)
        for user, index in used
    )


def _scaled(subject, operation):
    """Integers of an unknown range that are divided by a large number once they are half."""
    if operation.type != "Cast" or not flow.is_half(operation.outputs[0]):
        return
    if not operation.inputs[0].dtype.is_integer or of(subject.ranges, operation.inputs[0]).known:
        return
    for user, index in flow.uses(operation.outputs[0]):
        if user.type not in ("RealDiv", "Mul") or (user.type == "RealDiv" and index):
            continue
        factor = of(subject.ranges, user.inputs[1 - index])
        if not factor.known or factor.low != factor.high or not factor.low:
            continue
        number = abs(factor.low) if user.type == "RealDiv" else 1 / abs(factor.low)
        if number > flow.integers(operation.outputs[0].dtype):
            yield operation, number, "Integers, by what they are divided by", "warning"
