"""A value as a sum of terms with constant factors, read from operations."""

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf

from tfmp.doctor import flow
from tfmp.doctor.ranges import of

# What gives every number on in its place.
IN_PLACE = flow.SAME - {"StopGradient", "StridedSlice", "Slice", "Pack", "Tile", "BroadcastTo"}
# What writes a variable: its value, or what is added to it (1) or taken from it (-1).
ASSIGNS = {"AssignVariableOp": 0, "AssignAddVariableOp": 1, "AssignSubVariableOp": -1}


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a sum.

    Attributes:
        tensor: What is added.
        factor: Its factor; None: no constant.
        state: Whether it is the state that is looked for.
    """

    tensor: tf.Tensor
    factor: float | None
    state: bool


@dataclasses.dataclass(frozen=True)
class Update:
    """How a state becomes the next one.

    Attributes:
        decay: What part of the state a step takes away: 1 - momentum; 0 where it only adds.
        step: The largest factor of what is added; None: no constant.
        constant: What is added where that is a constant; None: it is not.
    """

    decay: float
    step: float | None
    constant: float | None


def written(found, operation) -> Update | None:
    """How an assignment changes a variable: see `update`.

    Args:
        found: The trace's ranges.
        operation: One of `ASSIGNS`.
    """
    target = flow.outermost(operation.inputs[0])

    def read(tensor):
        reads = tensor.op.type == "ReadVariableOp"
        return reads and flow.outermost(tensor.op.inputs[0]) is target

    return update(found, operation.inputs[1], read, ASSIGNS[operation.type])


def update(found, value, is_state: Callable, added: int = 0) -> Update | None:
    """Reads how a value comes of the state that it replaces.

    Args:
        found: The trace's ranges.
        value: The state's next value, or what is added to it.
        is_state: Function of a tensor: whether it is the state as it was.
        added: 1 or -1 where the value is added to the state, or taken from it; 0: it replaces it.

    Returns:
        The update; None where the state isn't in it, or not by a constant factor, or where nothing
        is added to it.
    """
    for alternative in _alternatives(value):
        terms = list(_terms(found, alternative, is_state, float(added or 1), 0))
        own = [term.factor for term in terms if term.state]
        others = [term for term in terms if not term.state]
        known = [x for x in own if x is not None]
        if len(known) < len(own) or not others or not (own or added):
            continue
        decay = 1.0 - sum(known) - (1.0 if added else 0.0)
        factors = [x.factor for x in others if x.factor is not None]
        if len(factors) < len(others):
            return Update(decay, None, None)
        constants = [of(found, term.tensor).constant for term in others]
        scaled = [x * y for x, y in zip(constants, factors, strict=True) if x is not None]
        constant = sum(scaled) if len(scaled) == len(others) else None
        return Update(decay, max(map(abs, factors)), constant)
    return None


def _alternatives(value) -> Iterator[tf.Tensor]:
    """What a value may be, by the branches of conditions."""
    while value.op.type in IN_PLACE:
        value = value.op.inputs[0]
    if value.op.type in ("If", "StatelessIf"):
        for given in flow.of_branches(value):
            yield from _alternatives(given)
    elif value.op.type in ("Select", "SelectV2"):
        for given in value.op.inputs[1:]:
            yield from _alternatives(given)
    else:
        yield value


def _terms(found, tensor, is_state, factor, depth) -> Iterator[Term]:
    if is_state(tensor):
        yield Term(tensor, factor, True)
        return
    operation = tensor.op
    kind, inputs = operation.type, list(operation.inputs)
    if depth > 40:
        yield Term(tensor, factor, False)
    elif kind in IN_PLACE and inputs[0].dtype.is_floating:
        yield from _terms(found, inputs[0], is_state, factor, depth + 1)
    elif kind in ("AddV2", "Add", "AddN", "BiasAdd", "Sub", "Neg"):
        for index, given in enumerate(inputs):
            sign = -1.0 if kind == "Neg" or (kind == "Sub" and index == 1) else 1.0
            signed = None if factor is None else sign * factor
            yield from _terms(found, given, is_state, signed, depth + 1)
    elif kind in ("Mul", "RealDiv"):
        yield from _product(found, operation, is_state, factor, depth)
    else:
        yield Term(tensor, factor, False)


def _product(found, operation, is_state, factor, depth):
    a, b = operation.inputs
    scalars = [of(found, x).constant for x in (a, b)]
    if scalars[1] is not None and (operation.type == "Mul" or scalars[1]):
        by, other = scalars[1] if operation.type == "Mul" else 1 / scalars[1], a
    elif scalars[0] is not None and operation.type == "Mul":
        by, other = scalars[0], b
    else:
        # By something that changes: is the state in it?
        within = any(
            is_state(x) for given in (a, b) for x in flow.sources(given, IN_PLACE | flow.ON_IDS)
        )
        yield Term(operation.outputs[0], None, within)
        return
    product = None if factor is None else factor * by
    yield from _terms(found, other, is_state, product, depth + 1)
