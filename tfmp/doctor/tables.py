"""Operations that look ids up: in the rows of a table, or in a column for each."""

import tensorflow as tf
from tensorflow.python.framework import tensor_util  # tf.get_static_value has no limit of size

from tfmp.doctor import flow

# What has a column for each id, instead of a row in a table.
COUNTING = ("OneHot", "DenseBincount", "Bincount")
# What adds up by ids.
SEGMENTS = ("UnsortedSegmentSum", "UnsortedSegmentMax", "UnsortedSegmentMin", "UnsortedSegmentProd")


def table_rows(operation, trace=None) -> int | None:
    """How many rows the table has that an operation looks up; None: it is no such operation."""
    if operation.type in COUNTING:
        depth = operation.inputs[1]
        # A count goes as far as the largest id, up to a limit.
        bounds = depth.op.inputs if depth.op.type == "Minimum" else [depth]
        known = [x for x in map(tensor_util.constant_value, bounds) if x is not None]
        return int(known[0]) if known else None
    if operation.type == "SparseSoftmaxCrossEntropyWithLogits":
        return operation.inputs[0].shape.as_list()[-1] if operation.inputs[0].shape.rank else None
    if operation.type in SEGMENTS:
        count = tensor_util.constant_value(operation.inputs[2])
        return None if count is None else int(count)
    if operation.type in ("GatherV2", "Gather"):
        return operation.inputs[0].shape.as_list()[0] if operation.inputs[0].shape.rank else None
    if operation.type == "ResourceGather" and trace is not None:
        read = trace.variables.get(id(operation), ())
        return read[0].shape[0] if read else None
    return None


def ids_of(operation) -> tf.Tensor:
    """The ids by which an operation of `table_rows` looks up."""
    return operation.inputs[0 if operation.type in COUNTING else 1]


def rows(trace) -> dict[tuple[int, int], int]:
    """Rows of the table that a tensor's elements are looked up in, as far back as it was moved."""
    found: dict[tuple[int, int], int] = {}
    for operation in trace.operations:
        count = table_rows(operation, trace)
        if not count:
            continue
        if operation.type == "GatherV2":
            axis = tensor_util.constant_value(operation.inputs[2])
            if axis is None or int(axis) != 0 or operation.inputs[0].op.type in ("Const", "Shape"):
                continue
        tensor = ids_of(operation)
        while True:
            key = (id(tensor.op), tensor.value_index)
            found[key] = min(count, found.get(key, count))
            # Clipping and rounding end it: what came before may have been any number.
            if tensor.op.type not in flow.SAME:
                break
            tensor = tensor.op.inputs[0]
    return found
