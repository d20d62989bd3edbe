"""Sizes that tensor cores dislike."""

from collections.abc import Iterator

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject

PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMul", "Conv2D", "Conv3D")
ALIGNED = 8


def misaligned_sizes(subject: Subject) -> Iterator[Finding]:
    """Sizes that are no multiples of 8 waste tensor cores.

    In half precision tensor cores take 8 numbers at once. A dense layer of 1,001 units or a
    vocabulary of 50,257 is padded or computed by a slower kernel, in all three products of a
    training step. It costs speed only.

    Example:
        keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(1001, dtype="mixed_float16")]
        )

    Mend:
        Round up to a multiple of 8: 1,008 units, of which some stay unused. The three channels of
        images need nothing.

    References:
        NVIDIA, "Matrix Multiplication Background User's Guide", requirements to use tensor cores.
    """
    found: dict[str | None, tuple[int, int]] = {}
    for operation in subject.trace.operations:
        if operation.type not in PRODUCTS or not flow.is_half(operation.outputs[0]):
            continue
        kernel = operation.inputs[1]
        if kernel.shape.rank is None or kernel.shape.rank < 2:
            continue
        if not any(x.op.type == "ReadVariableOp" for x in flow.sources(kernel, flow.SAME)):
            continue
        rows, columns = kernel.shape.as_list()[-2:]
        large = [n for n in (rows, columns) if n and n > ALIGNED and n % ALIGNED]
        if large:
            found.setdefault(subject.path(operation), (rows, columns))
    for name, (rows, columns) in found.items():
        yield Finding(
            "misaligned_sizes",
            "info",
            name,
            f"Multiplies by a matrix of {rows} by {columns}, which are not both multiples of "
            f"{ALIGNED}: tensor cores are used partly or not at all. Round the sizes up.",
            {"rows": rows, "columns": columns, "multiple": ALIGNED},
        )
