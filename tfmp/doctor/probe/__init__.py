"""Runs a model on a batch in float32 and in its policy, layer by layer, forward and backward.

Each layer is judged alone: with the inputs that it had in the model's own precision it is run again
in float32, so a fault is seen in the layer where it arises. A layer that fails computes in float32
from then on, so that those behind it are fed as they should be, and are judged too.
"""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from tfmp.doctor.probe.batch import Batch, draw, labels_for, tensors
from tfmp.doctor.probe.choices import choices
from tfmp.doctor.probe.faults import (
    added_faults,
    backward_faults,
    forward_faults,
    outside,
    raises,
    spans,
)
from tfmp.doctor.probe.parting import agree, parting
from tfmp.doctor.probe.proportion import off_scale
from tfmp.doctor.probe.step import Step, take, unchanged
from tfmp.doctor.probe.underflow import finite, fitting_scale, limiting, underflows
from tfmp.doctor.probe.values import Fault, Probe, Span, Underflow
from tfmp.doctor.subject import Subject, scale_of, scales

__all__ = ["Fault", "Probe", "Span", "Underflow", "probe"]

# What TensorFlow raises where a device lacks a kernel, which is no fault of the model.
DEVICE = (tf.errors.NotFoundError, tf.errors.UnimplementedError)
# How often layers that failed are put in float32 to see what is behind them.
ROUNDS = 4


def probe(subject: Subject, inputs=None, labels=None) -> Probe | None:
    """Runs a model on a batch; its variables are afterwards as they were before.

    Args:
        subject: The model.
        inputs: A batch as the model takes it; None: drawn from the inputs that the model declares.
        labels: Its labels; None: random ones where the loss is known, else gradients are those of
            a sum of the outputs with random signs.

    Returns:
        What it found; None where there are no inputs and the model declares none.
    """
    drawn = inputs is None
    inputs = draw(subject.model) if drawn else tensors(inputs)
    if inputs is None:
        return None
    if not subject.model.built:
        with contextlib.suppress(Exception):  # whatever it is, the steps below say it
            subject.model(inputs)
    with unchanged(subject) as restore:
        batch = _batch(subject, inputs, labels, drawn)

        def run(**how) -> Step:
            restore()
            return take(subject, batch, **how)

        reference = run(full=True)
        first = run()
        faults = []
        if first.error is not None:
            if reference.error is None and not isinstance(first.error, DEVICE):
                faults = [raises(first)]
            if first.failed is not None:
                return Probe(drawn, tuple(faults), error=str(first.error))
            # It may be a `train_step` that needs more than this batch.
            error = str(first.error)
            batch = dataclasses.replace(batch, own_loss=True)
            reference, first = run(full=True), run()
        if first.error is not None:
            faults += [fault for _, fault in forward_faults(first)]
            return Probe(drawn, tuple(faults), spans(first), error=str(first.error))
        found = _judged(subject, run, drawn, reference, first)
        if type(subject.model).train_step is not keras.Model.train_step and not batch.own_loss:
            found = dataclasses.replace(found, off_scale=off_scale(subject, run, reference))
    if faults:
        found = dataclasses.replace(found, faults=(*faults, *found.faults), error=error)
    return dataclasses.replace(found, guessed=batch.own_loss and subject.loss is None)


def _judged(subject, run, drawn, reference, first) -> Probe:
    """What there is to say of steps that run."""
    trained = {part.path for part in subject.parts if part.layer.trainable_variables}
    parted, same = parting(first, reference), agree(first, reference)
    reference.calls.clear()  # its activations, which nothing else reads
    step, faults, kept = _rounds(run, forward_faults, first, frozenset())
    if same:  # what nothing behind a layer notices is no fault
        faults = [fault for fault in faults if fault.kind != "flush" or fault.layer in trained]
    faults += [] if faults or same else [fault for _, fault in parted]
    faults += [fault for _, fault in choices(subject, first)]
    faults += [] if faults else added_faults(subject, first, reference)
    reach = spans(step)
    # A layer that computes in float32 from here on may have had wrong gradients, too.
    wrong = {fault.layer for fault in faults if fault.error is not None}
    if wrong and not finite(first):
        found = [fault for _, fault in backward_faults(first) if fault.layer in wrong]
        faults += [fault for fault in found if fault.error is None]
    if not finite(step):
        step, found, kept = _rounds(run, backward_faults, step, kept)
        faults += found
        if not faults and finite(reference):
            faults = [outside(step)]
    wanted = _wanted_scale(subject) if step.scaled else None
    scale, scaled = (1.0 if finite(step) else None), None
    if wanted and scale:
        scale = fitting_scale(step, wanted)
        while not finite(scaled := run(scale=scale, kept=kept)) and scale > 1:
            scale /= 4
    if scale:
        faults += [fault for _, fault in backward_faults(scaled or step, kept)]
    return Probe(
        drawn,
        tuple(faults),
        reach,
        underflows(subject, reference, step, scaled, scale or 1.0),
        scale,
        wanted,
        limiting=limiting(step) if wanted and scale and scale < wanted else None,
        unjudged=tuple((step.unjudged | (scaled.unjudged if scaled else {})).values()),
    )


def _rounds(run, find, step, kept):
    """Steps and their faults, the layers at fault in float32 from one to the next."""
    faults = []
    for number in range(ROUNDS):
        found = find(step, kept)
        faults += [dataclasses.replace(fault, behind=number > 0) for _, fault in found]
        if not found:
            break
        more = kept | {call.operation for call, _ in found}
        following = run(kept=more)
        if following.error is not None:  # it mixes dtypes, as it would so mended
            break
        step, kept = following, more
    return step, faults, kept


def _wanted_scale(subject) -> float | None:
    """The scale on the loss in training; None where nothing scales it."""
    for _, optimizer in subject.optimizers:
        if scales(optimizer):
            return scale_of(optimizer)
    # As `compile` will do.
    automatic = not subject.optimizers and subject.model.dtype_policy.name == "mixed_float16"
    return 2.0**15 if automatic else None


def _batch(subject, inputs, labels, drawn) -> Batch:
    model = subject.model
    plain = type(model).train_step is keras.Model.train_step
    given = subject.loss is not getattr(model, "loss", None)
    own = given or (model.compiled and all(x is not model.optimizer for _, x in subject.optimizers))
    if labels is not None:
        return Batch(inputs, tensors(labels), drawn, own)
    single = subject.loss is not None and not isinstance(subject.loss, dict | list | tuple)
    if plain and not own and model.compiled and single:
        with contextlib.suppress(Exception):  # of the model's own code; the steps say it
            labels = labels_for(subject.loss, model(inputs))
    return Batch(inputs, labels, drawn, own or (plain and labels is None))
