"""Whether layers choose the same in half as in float32: the nearest code, the best expert.

Or whether numbers are the same once they are whole, as seconds to look a bucket up with.
"""

import contextlib

import numpy as np
from tensorflow.python.framework import op_callbacks  # no public way to see operations run

from tfmp.doctor import flow
from tfmp.doctor.probe import compare
from tfmp.doctor.probe.recording import Call, half_of
from tfmp.doctor.probe.replay import ReplayError, given_to, replay
from tfmp.doctor.probe.step import Step
from tfmp.doctor.probe.values import Fault
from tfmp.doctor.subject import Subject

CHOOSING = ("ArgMax", "ArgMin", "TopKV2")
# Share of choices that have to be others, and times what rounding the inputs explains of it.
OTHERS, EXPLAINED = 0.2, 3.0


def choices(subject: Subject, step: Step) -> list[tuple[Call, Fault]]:
    """Layers that choose otherwise in half, from the same inputs, each with its call.

    Args:
        subject: The model.
        step: A step in the model's own precision.
    """
    choosing = {
        id(call.called)
        for call in subject.trace.calls
        for operation in call.operations
        if operation.type in CHOOSING or _makes_whole(operation)
    }
    found = []
    for call in (x for outermost in step.calls for x in outermost.everything()):
        dtype = half_of(call)
        if not dtype or id(call.operation) not in choosing:
            continue
        choosing.discard(id(call.operation))
        try:
            half, full = _chosen(call, full=False), _chosen(call)
            moved = _chosen(call, moved=2 * compare.EPSILON[dtype])
        except ReplayError as error:
            step.unjudged[call.path] = str(error)
            continue
        others, explained = (_others(x, full, compare.EPSILON[dtype]) for x in (half, moved))
        if others > max(OTHERS, EXPLAINED * explained):
            fault = Fault(
                layer=call.path,
                is_layer=True,
                direction="forward",
                kind="chooses",
                dtype=dtype,
                error=others,
                explained=explained,
                largest_input=compare.largest(given_to(call)),
            )
            found.append((call, fault))
    return found


def _makes_whole(operation) -> bool:
    """Whether it makes whole numbers of half ones."""
    return operation.type == "Cast" and (
        operation.inputs[0].dtype in flow.HALF_TYPES and operation.outputs[0].dtype.is_integer
    )


def _chosen(call, **how) -> list[tuple[str, np.ndarray]]:
    """What a call chooses, or makes whole, when it is run again."""
    found: list[tuple[str, np.ndarray]] = []

    def look(name, inputs, attributes, outputs, op_name=None, graph=None):
        name = name.decode() if isinstance(name, bytes) else name
        whole = name == "Cast" and inputs[0].dtype.is_floating and outputs[0].dtype.is_integer
        if graph is None and (name in CHOOSING or whole):
            found.append((name, outputs[-1].numpy()))

    with contextlib.ExitStack() as stack:
        op_callbacks.add_op_callback(look)
        stack.callback(op_callbacks.remove_op_callback, look)
        replay(call, backward=False, **how)
    return found


def _others(one, other, epsilon) -> float:
    """The largest share of choices that differ, or of whole numbers, by more than rounding."""
    shares = [0.0]
    for (kind, a), (name, b) in zip(one, other, strict=False):
        if kind == name and a.shape == b.shape:
            rounding = 0.0 if name in CHOOSING else 1.0 + compare.STEPS * epsilon * np.abs(b)
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            shares.append(float(np.mean(apart > rounding)))
    return max(shares)
