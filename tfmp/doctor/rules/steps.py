"""What a `train_step` of the model's own rounds: labels, and gradients behind the tape."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfmp.doctor import flow, hand
from tfmp.doctor.finding import Finding, Severity
from tfmp.doctor.subject import Subject

# Rounding of labels by their spread: below the first harmless, from the second an error.
HARMLESS, GRAVE = 0.03, 0.3


def half_gradients(subject: Subject) -> Iterator[Finding]:
    """Gradients that a `train_step` casts to half once they are unscaled become zero.

    A loss scale lifts gradients over 6e-8, where float16 ends. Once they are divided by it they
    have to stay float32: accumulators of several batches, averages over replicas and clipped copies
    in float16 lose what the scale has saved.

    Example:
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = keras.ops.mean((self(x) - y) ** 2) * 1024.0
                gradients = tape.gradient(loss, self.trainable_variables)
                gradients = [tf.cast(g / 1024.0, "float16") for g in gradients]  # to save memory
                gradients = [tf.cast(g, "float32") for g in gradients]
                self.optimizer.apply(gradients, self.trainable_variables)
                return {"loss": loss}

    Mend:
        Keep gradients in float32 from the tape to the optimizer, or cast while they are scaled.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2.
    """
    step, around = subject.step, subject.around
    if step is None or around is None:
        return
    lifted = hand.scaled(step.targets, around.ranges)
    for handed in step.handed:
        for way in hand.routes(step, around.ranges, handed):
            for cast, factor, power in way.casts:
                divided = way.divides(factor, power)
                if cast.outputs[0].dtype == tf.float16 and (divided or not lifted):
                    yield Finding(
                        "half_gradients",
                        "error",
                        None,
                        "The train_step casts gradients to float16 "
                        + ("once they are divided by the loss scale" if lifted else "unscaled")
                        + ": those below 6e-8 become zero. Keep them in float32 up to the "
                        "optimizer.",
                        {"scaled": lifted},
                    )
                    return


def half_labels(subject: Subject) -> Iterator[Finding]:
    """Labels that are half, or that a `train_step` casts to half, are other labels.

    A loss takes labels in the dtype of predictions, and casting them to that of a half output is
    soon written. Classes above 2048 become even ones, counts and prices keep three digits, times
    and amounts above 65504 are infinite. The doctor rounds the labels of a batch: an error where
    integers change, or by 30 % of their spread, a warning from 3 %.

    Example:
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data  # years
                with tf.GradientTape() as tape:
                    predicted = self(x)
                    y = keras.ops.cast(y, predicted.dtype)  # 2021.3 becomes 2021
                    loss = keras.ops.mean((predicted - y) ** 2)
                    scaled = self.optimizer.scale_loss(loss)
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(scaled, weights), weights)
                return {"loss": loss}

    Mend:
        Cast the predictions to float32, and leave the labels as they are.

    References:
        IEEE 754-2019, binary16: 11 significant bits.
    """
    if not subject.labels:
        return
    yield from _half_classes(subject)
    if subject.step is None:
        return
    for symbol, values in zip(subject.step.labels, subject.labels, strict=False):
        values = np.asarray(values)
        if values.dtype.kind not in "iuf" or not values.size:
            continue
        for dtype in _rounded_to(symbol):
            severity, by = _harm(values, dtype)
            if severity:
                yield Finding(
                    "half_labels",
                    severity,
                    None,
                    f"The train_step casts labels of up to {np.abs(values).max():.6g} to "
                    f"{dtype.name}, which changes them by up to {by:.3g}. Cast predictions to "
                    "float32 instead.",
                    {"largest": float(np.abs(values).max()), "changed_by": by},
                )
                break


def _half_classes(subject: Subject) -> Iterator[Finding]:
    """Class ids that are half already, where the model has more classes than half has integers."""
    for values, output in zip(subject.labels or (), subject.trace.outputs, strict=False):
        dtype = tf.as_dtype(np.asarray(values).dtype)
        shape = tuple(output.shape)
        if dtype.size != 2 or not dtype.is_floating or len(shape) < 2:
            continue
        exact, most = np.asarray(values).astype("float64"), flow.integers(dtype)
        places = (*shape[1:-1], 1)
        ids = (*exact.shape[1:], 1) in (places, (*places, 1)) and not (exact % 1).any()
        if ids and (shape[-1] or 0) > most and exact.max(initial=0) >= most:
            yield Finding(
                "half_labels",
                "error",
                None,
                f"The class ids are {dtype.name}, which hasn't every integer above {most}, and "
                f"the model has {shape[-1]} classes: many ids are others by now. Keep ids in an "
                "integer type.",
                {"largest": float(exact.max()), "classes": shape[-1]},
            )


def _rounded_to(symbol) -> list[tf.DType]:
    """The half dtypes that a symbol is cast to, as it is."""
    left, found = [symbol], []
    while left:
        x = left.pop()
        for operation in x.consumers():
            if operation.type in flow.SAME and operation.inputs[0] is x:
                half = operation.type == "Cast" and flow.is_half(operation.outputs[0])
                found += [operation.outputs[0].dtype] if half else []
                left += operation.outputs
    return list(dict.fromkeys(found))


def _harm(values, dtype) -> tuple[Severity | None, float]:
    """How bad it is that labels are rounded, and by how much they change."""
    exact = values.astype("float64")
    rounded = np.asarray(tf.cast(tf.cast(tf.constant(exact), dtype), "float64"))
    apart = np.abs(rounded - exact)
    largest = float(apart.max())
    if values.dtype.kind in "iu":
        return ("error" if largest else None), largest
    spread = exact.std()
    share = np.sqrt(np.mean(apart**2)) / spread if spread else 0.0
    if not share > HARMLESS:
        return None, largest
    return ("error" if not share < GRAVE else "warning"), largest
