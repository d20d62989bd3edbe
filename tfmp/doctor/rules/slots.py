"""What optimizers of one's own keep of each weight."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from tensorflow.python.framework import func_graph  # no public way to hold a graph open

from tfmp import loss_scale
from tfmp.doctor import flow, linear
from tfmp.doctor.calling import Attempt, Recorder
from tfmp.doctor.finding import Finding
from tfmp.doctor.ranges import ranges
from tfmp.doctor.rules.states import verdict
from tfmp.doctor.rules.variables import NUMBER_BY_NUMBER
from tfmp.doctor.subject import Subject
from tfmp.doctor.trace import combined
from tfmp.policies.choice import HALF


def half_slots(subject: Subject) -> Iterator[Finding]:
    """An optimizer that keeps its moments in half loses them.

    The square of a gradient below 2e-4 is zero in float16, and most gradients are: a second moment
    in float16 is zero, and the step a gradient over epsilon. First moments of gradients below 6e-8
    vanish, too. In bfloat16 a moment that decays by 0.999 stops far from its mean. Optimizers of
    Keras keep slots in the dtype of the weights, float32 under a mixed policy; one of your own may
    not. The doctor reads the update of a weight that stands in for all.

    Example:
        class Halved(keras.optimizers.Optimizer):
            def build(self, variables):
                super().build(variables)
                self.v = [self.add_variable(v.shape, dtype="float16") for v in variables]

            def update_step(self, gradient, variable, learning_rate):
                v = self.v[self._get_variable_index(variable)]
                square = keras.ops.square(keras.ops.cast(gradient, "float16"))
                v.assign(0.9 * keras.ops.convert_to_tensor(v) + 0.1 * square)
                root = keras.ops.sqrt(keras.ops.cast(v, "float32")) + 1e-7
                variable.assign_sub(learning_rate * gradient / root)

    Mend:
        Slots in float32.

    References:
        Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, on
            what states of fewer bits need.
    """
    for name, optimizer in subject.optimizers:
        found = _lost(optimizer)
        if found:
            yield Finding(
                "half_slots",
                "error",
                None,
                f"{name} ({type(optimizer).__name__}) keeps state in {found[0]}: {found[1]}. "
                "Keep its slots in float32.",
                {"dtype": found[0], "optimizer": name},
            )


def _lost(optimizer) -> tuple[str, str] | None:
    """(dtype, what is lost) of the slots of an optimizer that is not Keras' own; None: nothing."""
    inner = loss_scale.inner(optimizer)
    if type(inner).__module__.startswith("keras."):
        return None  # its slots have the dtype of the weights, of which other rules tell
    with contextlib.suppress(Exception), _as_it_was(inner):  # whatever code of the user's raises
        if not inner.built:
            inner.build([keras.Variable(tf.ones((2, 2)), dtype="float32")])
        weight = next((v for v in inner._trainable_variables if v.dtype not in HALF), None)
        if weight is not None and any(v.dtype in HALF for v in inner.variables):
            return next(_losses(inner, weight), None)
    return None


@contextlib.contextmanager
def _as_it_was(optimizer):
    """Keras can't copy an optimizer whose class isn't registered, so it is put back."""
    attributes = dict(vars(optimizer))
    lists = [(x, list(x)) for x in attributes.values() if isinstance(x, list)]
    stored = {name: set(ids) for name, ids in optimizer._tracker.stored_ids.items()}
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for held, before in lists:
            list.__setitem__(held, slice(None), before)
        optimizer._tracker.stored_ids.update(stored)


def _losses(optimizer, weight):
    graph, recorder = func_graph.FuncGraph("doctor_slots"), Recorder()
    with graph.as_default(), recorder.recording(optimizer):
        gradient = tf.compat.v1.placeholder("float32", weight.shape)
        optimizer.update_step(gradient, weight, tf.constant(1e-3))
    trace = combined(optimizer, [Attempt(optimizer, graph, recorder, [], [])])
    found = ranges(trace)
    for operation in trace.operations:
        if operation.type not in linear.ASSIGNS or not flow.is_half(operation.inputs[1]):
            continue
        value = operation.inputs[1]
        made = list(flow.sources(value, NUMBER_BY_NUMBER | {"Mul"}))
        if value.dtype == tf.float16 and any(map(_is_square, made)):
            yield "float16", "squares of gradients below 2e-4 become zero"
        update = linear.written(found, operation)
        severity, why = verdict(update, value.dtype.name) if update else (None, "")
        if severity:
            yield value.dtype.name, "one " + why
        elif value.dtype == tf.float16:
            yield "float16", "gradients below 6e-8 become zero"


def _is_square(tensor) -> bool:
    operation = tensor.op
    twice = operation.type == "Mul" and operation.inputs[0] is operation.inputs[1]
    return twice or operation.type == "Square"
