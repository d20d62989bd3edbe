"""Where values go in a trace, and where they come from."""

from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.framework import func_graph  # no public way to ask whose a tensor is

HALF_TYPES = (tf.float16, tf.bfloat16)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that give every element on as it is, but for its place and its dtype.
SAME = _words("""
    Cast Identity Snapshot Reshape Squeeze ExpandDims Transpose BroadcastTo Tile
    StopGradient StridedSlice Slice EnsureShape Pack
""")
# Operations that keep ids ids: rounding, offsets, clipping.
ON_IDS = SAME | _words("""
    AddV2 Add Sub Mul Maximum Minimum ClipByValue Floor Round Rint FloorMod ConcatV2
    SelectV2 Select ReverseV2 GatherV2 Relu Abs RealDiv FloorDiv
""")
# Operations without a gradient to what they take.
STOPS = _words("""
    StopGradient PreventGradient Shape ShapeN Rank Size ZerosLike OnesLike
""")


def is_half(tensor) -> bool:
    """Whether a tensor is float16 or bfloat16."""
    return tensor.dtype in HALF_TYPES


def largest(dtype) -> float:
    """The largest finite number of a float dtype."""
    return float(dtype.as_numpy_dtype(dtype.max))


def integers(dtype) -> int:
    """Up to which number a float dtype holds every integer: 2048 for float16, 256 for bfloat16."""
    return {tf.float16: 2**11, tf.bfloat16: 2**8}[dtype]


def smallest(dtype) -> float:
    """Above which number a float dtype does not round to zero."""
    return {tf.float16: 2.0**-25, tf.bfloat16: 2.0**-134}[dtype]


def uses(tensor, through=SAME) -> Iterator[tuple[tf.Operation, int]]:
    """The operations that take a tensor, and its place among their inputs.

    Args:
        tensor: A tensor of the trace.
        through: Types of operations that are seen through.
    """
    stack, seen = [tensor], set()
    while stack:
        x = stack.pop()
        for operation in x.consumers():
            for index, given in enumerate(operation.inputs):
                if given is not x or (id(operation), index) in seen:
                    continue
                seen.add((id(operation), index))
                if operation.type in through:
                    stack += operation.outputs
                else:
                    yield operation, index


def sources(tensor, through) -> Iterator[tf.Tensor]:
    """A tensor and those that it was made of.

    Args:
        tensor: A tensor of the trace.
        through: Types of operations that are seen through.
    """
    stack, seen = [tensor], set()
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        yield x
        if x.op.type in through:
            stack += x.op.inputs


def called_graph(operation, name) -> tf.Graph | None:
    """The graph of a function that an operation calls, as loops and conditions do.

    Args:
        operation: An operation.
        name: The attribute that names the function, such as "body".

    Returns:
        The graph; None where there is no such attribute, or the function is one of TensorFlow 1's
        kind, as in the CTC loss, which keeps no graph.
    """
    try:
        function = operation.graph._get_function(operation.get_attr(name).name)
    except (ValueError, AttributeError):
        return None
    return getattr(function, "graph", None)


def of_branches(tensor) -> Iterator[tf.Tensor]:
    """What the branches of a condition give for one of its outputs, where they can be seen."""
    for name in ("then_branch", "else_branch"):
        if graph := called_graph(tensor.op, name):
            yield graph.outputs[tensor.value_index]


def outermost(tensor):
    """What was handed into functions, out to where it is, as a variable's handle."""
    while isinstance(getattr(tensor, "graph", None), func_graph.FuncGraph):
        outer = next((x for x, inner in tensor.graph.captures if inner is tensor), None)
        if outer is None:
            return tensor
        tensor = outer
    return tensor


def reached(trace, variables) -> dict[int, list[tf.Tensor]]:
    """The half tensors that gradients of variables pass through, by the id of their operation.

    Args:
        trace: A `tfmp.doctor.trace.Trace`.
        variables: Keras variables.
    """
    wanted = {id(v) for v in variables}
    flowing: set[tuple[int, int]] = set()
    found: dict[int, list[tf.Tensor]] = {}
    for operation in trace.operations:
        if operation.type in STOPS:
            continue
        reads = any(id(v) in wanted for v in trace.variables.get(id(operation), ()))
        if not reads and not any((id(x.op), x.value_index) in flowing for x in operation.inputs):
            continue
        for index, tensor in enumerate(operation.outputs):
            if tensor.dtype.is_floating or tensor.dtype == tf.variant:
                flowing.add((id(operation), index))
                if is_half(tensor):
                    found.setdefault(id(operation), []).append(tensor)
    return found
