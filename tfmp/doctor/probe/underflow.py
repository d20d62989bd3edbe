"""What half loses of the gradients of weights, and of the steps that weights make."""

import keras
import numpy as np
import tensorflow as tf

from tfmp import loss_scale
from tfmp.doctor.probe import compare
from tfmp.doctor.probe.recording import computes, half_of
from tfmp.doctor.probe.replay import weights_of
from tfmp.doctor.probe.step import Step
from tfmp.doctor.probe.values import Underflow
from tfmp.doctor.subject import Subject
from tfmp.policies.choice import HALF

# By an optimizer's epsilon: a gradient of that size moves a weight by this part of a step.
UNNOTICED = 0.1


def finite(step: Step) -> bool:
    """Whether all gradients of a step, those of layers' outputs too, are finite."""
    return all(map(compare.finite, [*_flowing(step), *step.gradients.values()]))


def fitting_scale(step: Step, wanted: float) -> float:
    """The largest power of two, up to `wanted`, that keeps what flows in float16 below its maximum.

    Args:
        step: A step without loss scale whose gradients are finite.
        wanted: The optimizer's scale.
    """
    weights = [v for x in _calls(step) if half_of(x) == "float16" for v in weights_of(x)]
    own = [step.gradients[id(v)] for v in weights if id(v) in step.gradients]
    largest = compare.largest([*_flowing(step, "float16"), *own])
    most = float(tf.float16.max) / largest if largest else wanted
    return float(2.0 ** np.floor(np.log2(min(wanted, most))))


def limiting(step: Step) -> str | None:
    """The layer whose float16 holds the largest gradient of its outputs.

    Args:
        step: A step without loss scale whose gradients are finite.
    """
    sizes = {
        call.path: compare.largest(call.given.values())
        for call in _calls(step)
        if half_of(call) == "float16" and call.path and computes(call)
    }
    return max(sizes, key=lambda path: sizes[path], default=None)


def _calls(step):
    return [x for outermost in step.calls for x in outermost.everything()]


def _flowing(step, dtype=None):
    return [
        gradient
        for call in _calls(step)
        if dtype is None or half_of(call) == dtype
        for gradient in [*call.given.values(), *call.passed.values()]
    ]


def underflows(
    subject: Subject, reference: Step, unscaled: Step, scaled: Step | None, scale: float
) -> tuple[Underflow, ...]:
    """Compares a step's gradients with those of float32, layer by layer.

    Args:
        subject: The model.
        reference: A step in float32.
        unscaled: A step in the model's own precision, without loss scale.
        scaled: The same with the loss scale; None where nothing scales the loss.
        scale: The loss scale of `scaled`.
    """
    moved = _stuck(subject, reference, scaled or unscaled, scale)
    holders = [(None, subject.model), *((part.path, part.layer) for part in subject.parts)]
    found = []
    least = _least(subject)
    for path, layer in holders:
        ids = [id(v) for v in layer._trainable_variables if id(v) in reference.gradients]
        full, plain = _flat(reference, ids), _flat(unscaled, ids)
        if full is None or plain is None:
            continue
        there = (np.abs(full) > least) & np.isfinite(full)
        if not there.any():
            continue
        lifted = _flat(scaled, ids) if scaled else None
        trained = plain if lifted is None else lifted
        lost = np.linalg.norm(full[there & (trained == 0)].astype(np.float64))
        updates = [moved[i] for i in ids if i in moved]
        found.append(
            Underflow(
                layer=path,
                unscaled=float(np.mean(plain[there] == 0)),
                scaled=None if lifted is None else float(np.mean(lifted[there] == 0)),
                lost=float(lost / np.linalg.norm(full[there].astype(np.float64))),
                updates=float(np.mean(updates)) if updates else None,
            )
        )
    return tuple(found)


def _least(subject) -> float:
    """What part of a gradient an optimizer that divides by its size doesn't notice."""
    epsilons = [getattr(loss_scale.inner(x), "epsilon", None) for _, x in subject.optimizers]
    known = [x for x in epsilons if isinstance(x, float)]
    return UNNOTICED * min(known) if known and len(known) == len(epsilons) else 0.0


def _flat(step, ids) -> np.ndarray | None:
    """The gradients of some variables as one array; None where there are none."""
    if not ids or any(i not in step.gradients for i in ids):
        return None
    return np.concatenate([compare.array(step.gradients[i]) for i in ids])


def _stuck(subject, reference, step, scale) -> dict[int, float]:
    """Of each half weight, by its id, the share that a step moves in float32 only."""
    found: dict[int, float] = {}
    weights = {id(v): v for v in subject.model.trainable_variables if str(v.dtype) in HALF}
    known = {i: v for i, v in weights.items() if i in reference.gradients and i in step.gradients}
    if not known:
        return found
    for _, optimizer in subject.optimizers:
        inner = loss_scale.inner(optimizer)
        trained = {i: v for i, v in known.items() if not optimizer.built or _has(optimizer, v)}
        full = _steps(inner, trained, "float32", reference.gradients, 1.0)
        half = _steps(inner, trained, None, step.gradients, scale)
        for i, a, b in zip(trained, full, half, strict=True):
            found[i] = float(np.sum(a & ~b) / max(np.sum(a), 1))
    return found


def _has(optimizer, variable) -> bool:
    return any(v is variable for v in optimizer._trainable_variables)


def _steps(optimizer, weights, dtype, gradients, scale):
    """Which numbers of each weight a step of a new optimizer of the same kind moves."""
    copies = [
        keras.Variable(v.value, dtype=dtype or v.dtype, name=v.name) for v in weights.values()
    ]
    before = [v.numpy() for v in copies]
    given = [
        tf.cast(tf.cast(gradients[i], "float32") / scale, v.dtype)
        for i, v in zip(weights, copies, strict=True)
    ]
    new = type(optimizer).from_config(optimizer.get_config())
    new.apply(given, copies)
    return [v.numpy() != old for v, old in zip(copies, before, strict=True)]
