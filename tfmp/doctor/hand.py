"""What a `train_step` does by hand: a scale on its loss, and to its gradients behind the tape."""

import dataclasses
from collections.abc import Iterator

import tensorflow as tf

from tfmp.doctor import flow
from tfmp.doctor.ranges import of
from tfmp.doctor.stepping import Stepping

# A factor of this size on a loss is meant for its gradients, and no weight of a term.
LARGE = 16.0
# What gradients go through, number by number, on their way to an optimizer.
ON_GRADIENTS = flow.SAME | {"AddV2", "Add", "AddN", "Sub", "Mul", "RealDiv", "SelectV2", "Select"}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a gradient gets from a tape to an optimizer.

    Attributes:
        factor: The constant that it is multiplied by on its way.
        power: How often it is multiplied by what is no constant, less how often divided.
        casts: Casts to half on its way, each with the factor and the power behind it.
    """

    factor: float
    power: int
    casts: tuple[tuple[tf.Operation, float, int], ...]

    def divides(self, factor: float = 1.0, power: int = 0) -> bool:
        """Whether it is divided by a scale before it comes to a factor and a power behind."""
        return self.power < power or abs(self.factor / factor) <= 1 / LARGE


def scales(step: Stepping, found) -> bool:
    """Whether a `train_step` multiplies its loss, and divides the gradients again.

    Args:
        step: The `train_step`.
        found: The ranges of its trace.
    """
    ways = [next(routes(step, found, x), None) for x in step.handed]
    divided = [x is not None and (x.divides() or x.power != 0) for x in ways]
    return scaled(step.targets, found) and bool(divided) and all(divided)


def scaled(targets, found) -> bool:
    """Whether anything multiplies a loss by a large factor before it is differentiated.

    Args:
        targets: What is differentiated: tensors.
        found: The ranges of their trace.
    """
    factors = [_factor(found, x) for x in targets]
    return any(x is None or x >= LARGE for x in factors)


def _factor(found, tensor) -> float | None:
    """The largest constant that a value was multiplied by at last, in one step or in several.

    None: by a scalar that is no constant.
    """
    factor = largest = 1.0
    while True:
        operation = tensor.op
        if operation.type in flow.SAME and operation.inputs[0].dtype.is_floating:
            tensor = operation.inputs[0]
        elif operation.type in ("Mul", "RealDiv"):
            a, b = operation.inputs
            by, other = _scalar(found, b), a
            if by is None and operation.type == "Mul" and _scalar(found, a) is not None:
                by, other = _scalar(found, a), b
            if by is None:
                state = any(_is_state(x) for x in (a, b))
                return None if state else largest
            factor *= by if operation.type == "Mul" else 1 / by
            largest = max(largest, abs(factor))
            tensor = other
        else:
            return largest


def routes(step: Stepping, found, handed) -> Iterator[Way]:
    """Ways from what tapes gave to what an optimizer got.

    Args:
        step: The `train_step`.
        found: The ranges of its trace.
        handed: A gradient that an optimizer got.
    """
    begins = {id(x) for x in step.gradients}
    stack: list[tuple] = [(handed, Way(1.0, 0, ()))]
    seen: set[int] = set()
    while stack:
        tensor, way = stack.pop()
        if id(tensor) in begins:
            yield way
            continue
        operation = tensor.op
        if id(tensor) in seen or id(operation) in step.backward:
            continue
        seen.add(id(tensor))
        if operation.type in ("Mul", "RealDiv"):
            a, b = operation.inputs
            stack.append((a, _times(way, _scalar(found, b), operation.type == "RealDiv")))
            if operation.type == "Mul":
                stack.append((b, _times(way, _scalar(found, a), False)))
        elif operation.type in ON_GRADIENTS:
            to_half = operation.type == "Cast" and flow.is_half(tensor)
            if to_half and not flow.is_half(operation.inputs[0]):
                casts = (*way.casts, (operation, way.factor, way.power))
                way = dataclasses.replace(way, casts=casts)
            stack += [(x, way) for x in operation.inputs if x.dtype.is_floating]


def _times(way, by, divides) -> Way:
    """The way before a product or a fraction; `by` is None where it is no constant."""
    if by is None:
        return dataclasses.replace(way, power=way.power + (-1 if divides else 1))
    return dataclasses.replace(way, factor=way.factor * (1 / by if divides else by))


def _scalar(found, tensor) -> float | None:
    return of(found, tensor).constant or None


def _is_state(tensor) -> bool:
    """Whether a scalar is read from a variable, as a dynamic scale is."""
    read = any(x.op.type == "ReadVariableOp" for x in flow.sources(tensor, flow.SAME))
    return read and tensor.shape.rank == 0
