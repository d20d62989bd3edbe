"""The same images as other dtypes and in other ranges: what a model takes, and what breaks it.

A model of ours takes images of 0-255 in any dtype, and normalizes them. Whoever feeds it 0-1, as
other libraries have it, or a 16-bit file as it is read, gets an answer all the same, and a wrong
one: here is how wrong.
"""

import re

import tensorflow as tf

from tfmp.errors import OutOfMemoryError
from tfmp.evaluation.predictions import Predictions, predict
from tfmp.evaluation.summary import compare
from tfmp.metrics import classification, paired

# Above rounding in any policy: half a unit in bfloat16's last place is 2^-9.
SAME = 2**-7


def _as(dtype):
    return lambda images: tf.cast(images, dtype)


def _linear(scale, shift, dtype=tf.float32):
    return lambda images: tf.cast(tf.cast(images, tf.float32) * scale + shift, dtype)


def _camera(scale, shift):
    """Another contrast around middle gray and another brightness, cut to uint8 as in a file."""
    return lambda images: tf.cast(
        tf.round(
            tf.clip_by_value((tf.cast(images, tf.float32) - 127.5) * scale + 127.5 + shift, 0, 255)
        ),
        tf.uint8,
    )


# What images uint8 become, by kind. A "dtype" holds the same numbers, a "range" the same images in
# another convention, and a "shift" is another exposure.
INPUTS = {
    "dtype": {
        "uint8 0-255": _as(tf.uint8),
        "float32 0-255": _as(tf.float32),
        "float16 0-255": _as(tf.float16),
        "uint16 0-255": _as(tf.uint16),
        "int32 0-255": _as(tf.int32),
    },
    "range": {
        "float32 0-1": _linear(1 / 255, 0.0),
        "float32 -1-1": _linear(2 / 255, -1.0),
        "float32 -128-127": _linear(1.0, -128.0),
        "uint16 0-65535": _linear(257.0, 0.0, tf.uint16),
        "inverted 255-0": _camera(-1.0, 0.0),
    },
    "shift": {
        "brightness -64": _camera(1.0, -64.0),
        "brightness -16": _camera(1.0, -16.0),
        "brightness +16": _camera(1.0, 16.0),
        "brightness +64": _camera(1.0, 64.0),
        "contrast x0.5": _camera(0.5, 0.0),
        "contrast x2": _camera(2.0, 0.0),
    },
}
REFERENCE = "uint8 0-255"


def vary_inputs(compiled, dataset, own):
    """Predicts the same images in every way of `INPUTS`.

    Args:
        compiled: What `forward` made of the model.
        dataset: Function that makes a finite `tf.data.Dataset`, as `predict` takes it.
        own: The `Predictions` of the images as they are.

    Returns:
        A dict: way -> `kind`, `verdict`, `accuracy`, `accuracy_change`, `flips`,
        `relative_logit_difference`, `non_finite`; of what the model can't take, `kind`, `verdict`
        and `error`. Verdicts: "same", no prediction changes, and logits by no more than rounding;
        "changes"; "worse", fewer are right than chance would make it (McNemar, p < 0.001);
        "breaks", less than half as many are right, or logits are not finite; "refused".

    Raises:
        OutOfMemoryError: The device's memory does not hold a batch.
    """
    found = {}
    for kind, ways in INPUTS.items():
        for name, change in ways.items():
            try:
                seen = own if name == REFERENCE else _changed(compiled, dataset, change)
            except OutOfMemoryError:
                raise
            except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
                found[name] = {"kind": kind, "verdict": "refused", "error": _reason(error)}
            else:
                found[name] = {"kind": kind, **_against(seen, own)}
    return found


def _changed(compiled, dataset, change):
    changed = dataset().map(
        lambda images, labels, weights: (change(images), labels, weights),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return predict(None, changed, compiled=compiled)


def _against(seen: Predictions, own: Predictions):
    right, own_right = (classification.outcomes(x.logits, x.labels) for x in (seen, own))
    differences = compare(seen, own)
    accuracy, own_accuracy = float(right.correct.mean()), float(own_right.correct.mean())
    non_finite = int((~right.finite).sum())
    failed = non_finite > int((~own_right.finite).sum()) or not right.finite.any()
    if failed or accuracy < own_accuracy / 2:
        verdict = "breaks"
    elif paired.fewer_right(right.correct, own_right.correct) < paired.ALPHA:
        verdict = "worse"
    elif differences["flips"] or not differences["relative_logit_difference"] <= SAME:
        verdict = "changes"
    else:
        verdict = "same"
    return {
        "verdict": verdict,
        "accuracy": accuracy,
        "accuracy_change": accuracy - own_accuracy,
        "flips": differences["flips"],
        "relative_logit_difference": differences["relative_logit_difference"],
        "non_finite": non_finite,
    }


def _reason(error):
    """The first line that says something, of a message that Keras may have wrapped in colors."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    said = [x.strip() for x in lines if x.strip() and not x.startswith("Exception encountered")]
    return said[0] if said else type(error).__name__
