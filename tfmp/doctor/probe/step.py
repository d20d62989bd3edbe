"""One training step of a model, without the update: what it calls and the gradients it makes."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfmp.doctor.calling import standing_in
from tfmp.doctor.probe.batch import Batch, labels_for
from tfmp.doctor.probe.recording import Call, Recorder, all_float32, is_float
from tfmp.doctor.subject import Subject, scales


@dataclasses.dataclass
class Step:
    """What a training step did.

    Attributes:
        calls: The outermost calls of layers, in their order.
        gradients: Gradients of the loss times the scale, by the id of the variable.
        losses: The model's loss, each time that it was computed.
        scaled: Whether an optimizer scaled the loss.
        added: (layer, loss) of what layers added to the loss.
        error: What it raised; None: nothing.
        unjudged: What went wrong when layers were run again, by their paths.
        failed: The innermost call that raised it; None: it came from outside of all layers, such as
            a gradient that the device can't compute.
    """

    calls: list[Call]
    gradients: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)
    losses: list[tf.Tensor] = dataclasses.field(default_factory=list)
    scaled: bool = False
    added: list[tuple[keras.Layer, tf.Tensor]] = dataclasses.field(default_factory=list)
    error: Exception | None = None
    failed: Call | None = None
    unjudged: dict[str | None, str] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def unchanged(subject: Subject):
    """Gives a function that puts back a model's and its optimizers' variables; so does leaving."""
    model = subject.model
    holders = [model, *(optimizer for _, optimizer in subject.optimizers)]
    variables = {id(v): v for x in holders for v in x.variables}
    variables |= {id(v): v for metric in model.metrics for v in metric.variables}
    kept = [(v, tf.identity(v.value)) for v in variables.values()]

    def restore():
        for variable, value in kept:
            variable.assign(value)

    try:
        yield restore
    finally:
        restore()
        model._clear_losses()


def take(
    subject: Subject,
    batch: Batch,
    scale: float = 1.0,
    kept: frozenset = frozenset(),
    full: bool = False,
) -> Step:
    """Runs one training step eagerly and records it.

    A compiled model runs its own `train_step`, whatever that does; its optimizers are given the
    gradients and apply none.

    Args:
        subject: The model.
        batch: What it is fed.
        scale: Factor on the loss, where an optimizer scales it.
        kept: Layers and operations that compute in float32.
        full: All layers compute in float32.
    """
    recorder = Recorder(subject, kept, full)
    step = Step(recorder.calls)
    precision = all_float32(subject.model._flatten_layers()) if full else contextlib.nullcontext()
    with contextlib.ExitStack() as stack:
        stack.enter_context(precision)
        for _, optimizer in subject.optimizers:
            stack.enter_context(_intercepted(optimizer, step, scale))
        stack.enter_context(_overheard(subject.model, step))
        stack.enter_context(recorder.recording())
        try:
            if subject.model.compiled and not batch.own_loss:
                subject.model.train_step(batch.data())
            else:
                _plain(subject, batch, step, scale)
        except Exception as error:  # whatever a model's own code may raise
            step.error = error
            step.failed = recorder.failed
    layers = subject.model._flatten_layers()
    step.added = [(x, loss) for x in layers for loss in x._losses if is_float(loss)]
    return step


def _plain(subject, batch, step, scale):
    model = subject.model
    with tf.GradientTape() as tape:
        training = {"training": True} if model._call_has_training_arg else {}
        outputs = model(batch.inputs, **training)
        loss = _loss(subject, batch, outputs) + sum(tf.cast(x, "float32") for x in model.losses)
        step.losses.append(loss)
        loss *= scale
        step.scaled = True
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [v._value for v in variables])
    _collect(step, gradients, variables)


def _loss(subject, batch, outputs):
    """The loss given, or, where there is none, a sum of all outputs with random signs."""
    if subject.loss is not None and not isinstance(subject.loss, dict | list | tuple):
        labels = labels_for(subject.loss, outputs) if batch.labels is None else batch.labels
        function = keras.losses.get(subject.loss)
        return tf.cast(tf.reduce_mean(function(labels, outputs)), "float32")
    rng = np.random.default_rng(0)
    total = tf.constant(0.0)
    for x in keras.tree.flatten(outputs):
        if x.dtype.is_floating:
            signs = np.float32(rng.choice([-1, 1], x.shape))
            total += tf.reduce_mean(tf.cast(x, "float32") * signs)
    return total


@contextlib.contextmanager
def _overheard(model, step):
    """What the model's `compute_loss` returns goes to `step`, too."""
    original = model.compute_loss

    def compute_loss(*args, **kwargs):
        loss = original(*args, **kwargs)
        step.losses += [loss] if is_float(loss) else []
        return loss

    model.__dict__["compute_loss"] = compute_loss
    try:
        yield
    finally:
        del model.__dict__["compute_loss"]


def _intercepted(optimizer, step, scale):
    """A context in which an optimizer hands its gradients to `step`; its loss scale is `scale`."""

    def apply(grads, trainable_variables=None):
        variables = optimizer._trainable_variables
        _collect(step, list(grads), trainable_variables or variables)

    def apply_gradients(grads_and_vars):
        grads, variables = zip(*grads_and_vars, strict=True)
        _collect(step, grads, variables)

    def scale_loss(loss):
        step.scaled = True
        return loss * tf.cast(scale, loss.dtype)

    methods = {"apply": apply, "apply_gradients": apply_gradients}
    if scales(optimizer):
        methods["scale_loss"] = scale_loss
    return standing_in(optimizer, scale, **methods)


def _collect(step, gradients, variables):
    for gradient, variable in zip(gradients, variables, strict=False):
        if gradient is not None:
            step.gradients.setdefault(id(variable), tf.convert_to_tensor(gradient))
