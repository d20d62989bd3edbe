"""Outputs of a model."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding, Severity
from tfmp.doctor.stepping import has_own_step
from tfmp.doctor.subject import Subject

# What maps a model's last values to probabilities.
SQUASHING = ("Softmax", "Sigmoid")
# What probabilities, and one minus them, go through on their way to a logarithm.
ON_PROBABILITIES = flow.SAME | {
    "AddV2", "Add", "Sub", "Neg", "Mul", "Maximum", "Minimum", "ClipByValue", "GatherV2",
    "GatherNd", "SelectV2", "Select", "ConcatV2",
}  # fmt: skip
LOGARITHMS = ("Log", "Log1p", "Xlogy", "Xlog1py")
# What crossentropies of logits begin with.
NORMALIZING = (
    "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "LogSoftmax", "Softmax",
    "Sigmoid", "Softplus", "GreaterEqual",
)  # fmt: skip
# Rounding of labels by their spread: below the first harmless, above the second an error.
HARMLESS, GRAVE = 0.03, 0.3


def half_output(subject: Subject) -> Iterator[Finding]:
    """A model that ends in float16 rounds its predictions.

    A probability below 6e-8 becomes 0 and one above 0.9998 becomes 1: where a logarithm follows,
    as in a crossentropy, confident examples give a wrong loss and no gradient, also if the loss
    casts to float32, since what was rounded before stays so. That is an error. A regression keeps
    three digits: a target of 2021.3 becomes 2021. It is a warning, and with the labels of a batch
    the doctor measures it: an error where rounding them is 30 % of their spread, information below
    3 %. So are logits, whose rounding changes a crossentropy by less than 1 %, and outputs that a
    `train_step` of the model's own casts. Whatever calls `predict`, or loads the exported model,
    gets float16.

    Example:
        inputs = keras.Input((4,))
        half = keras.layers.Dense(3, activation="softmax", dtype="mixed_float16")
        model = keras.Model(inputs, half(inputs))
        model.predict(np.zeros((1, 4)), verbose=0).dtype  # float16

    Mend:
        Give the last layer `dtype="float32"`; where softmax is a layer of its own, that layer.
        `fix` does it.

    References:
        Keras' guide "Mixed precision", section on building the model:
            https://www.tensorflow.org/guide/mixed_precision
    """
    named: set[str | None] = set()
    trace = subject.trace
    tensors = [*enumerate(trace.outputs), *((None, x) for x in trace.parts)]
    for number, tensor in tensors:
        walk = _walk(tensor)
        made_by = walk[-1].op
        squashed = made_by.type in SQUASHING and flow.is_half(walk[-1])
        if not squashed and not flow.is_half(tensor):
            continue
        name = subject.path(made_by if squashed else tensor.op)
        if name in named:
            continue
        named.add(name)
        dtype = walk[-1].dtype if squashed else tensor.dtype
        measured = None if squashed else _rounding_of_labels(subject, number, tensor)
        yield Finding(
            "half_output",
            _severity(subject, number, name, walk, squashed, measured),
            name,
            f"The model's output is computed in {dtype.name}"
            + ("" if flow.is_half(tensor) else " and cast after it was rounded")
            + (
                ": small probabilities become 0, large ones 1, and their gradients vanish. "
                if squashed
                else ": its values are rounded to three digits or fewer"
                + ("" if measured is None else f", which is {measured:.2g} of the labels' spread")
                + ". "
            )
            + 'Give the last layers dtype="float32".',
            {"dtype": dtype.name, "operation": made_by.type}
            | ({} if measured is None else {"rounding_of_labels": measured}),
            _layers(subject, walk),
        )


def not_traced(subject: Subject) -> Iterator[Finding]:
    """A model that can't be called on symbols is looked at in parts, or not at all.

    Most rules look at the operations that a model's layers are traced to. A subclassed model has to
    be built, and to be called with the shapes it was built with; what its own `call` does with
    numpy, or with the values of tensors, can't be traced by `fit` either.

    Example:
        class Model(keras.Model):
            def call(self, x):
                return keras.ops.softmax(x / 1e6)

        tfmp.doctor.diagnose(Model())  # of what shape is x?

    Mend:
        Call the model on a batch first, or give one: `tfmp.doctor.diagnose(model, inputs)`.

    References:
        TensorFlow's guide "Better performance with tf.function":
            https://www.tensorflow.org/guide/function
    """
    for failure in subject.trace.failures:
        yield Finding(
            "not_traced",
            "info",
            None,
            f"Rules saw its layers alone, or nothing: {failure}. Call it on a batch first, or give "
            "inputs.",
            {"failure": failure},
        )


def half_added_loss(subject: Subject) -> Iterator[Finding]:
    """A loss that a layer adds in half can't be summed with the model's.

    `add_loss` and activity regularizers take what the layer computed, in its compute dtype. A sum
    of squares over a batch of activations passes 65504 soon, and Keras 3.15 can't add a float16
    loss to the float32 one: `fit` ends with a TypeError.

    Example:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(2, activity_regularizer="l2", dtype="mixed_float16"),
            ]
        )
        model.compile("sgd", "mse")
        model.fit(np.ones((1, 4)), np.ones((1, 2)))  # TypeError

    Mend:
        `self.add_loss(keras.ops.cast(loss, "float32"))`, summed in float32; a layer with an
        activity regularizer in float32, which `fix` sets.

    References:
        Seen on Keras 3.15.
    """
    for layer, tensor in subject.trace.losses:
        part = subject.part(layer)
        if flow.is_half(tensor):
            name = part.path if part else None
            yield Finding(
                "half_added_loss",
                "error",
                name,
                f"Adds a loss in {tensor.dtype.name}, which overflows as a sum of many values and "
                "can't be added to the model's float32 loss. Cast before the sum, or give the "
                'layer dtype="float32".',
                {"dtype": tensor.dtype.name},
                subject.float32(name),
            )


def _severity(subject, number, name, walk, squashed, measured) -> Severity:
    """How bad a half output is, by what training makes of it."""
    step = subject.step
    if has_own_step(subject.model) or number is None:
        if not squashed or step is None or not step.own:
            return "info"
        stepped = dataclasses.replace(subject, trace=step.trace)
        made = [
            x
            for operation in step.trace.operations
            if operation.type in SQUASHING and stepped.path(operation) == name
            for x in operation.outputs
        ]
        return "error" if any(map(_to_logarithm, made)) else "info"
    if subject.loss is None:
        if squashed and subject.trace.losses:
            return "error" if any(map(_to_logarithm, walk)) else "info"
        return "error" if squashed else "info"
    if step is None or number >= len(step.predicted):
        return "warning"
    predicted = step.predicted[number]
    if squashed:
        return "error" if _to_logarithm(predicted) else "info"
    if measured is not None:
        return "error" if measured > GRAVE else "warning" if measured > HARMLESS else "info"
    return "info" if _is_logits(predicted) else "warning"


def _to_logarithm(tensor) -> bool:
    """Whether numbers reach a logarithm: as they are, summed over the last axis, or divided."""
    left, seen = [tensor], set()
    while left:
        for operation, _ in flow.uses(left.pop(), ON_PROBABILITIES):
            if operation.type in LOGARITHMS:
                return True
            over_classes = operation.type == "Sum" and _over_last_axis(operation)
            if (over_classes or operation.type == "RealDiv") and id(operation) not in seen:
                seen.add(id(operation))
                left += operation.outputs
    return False


def _over_last_axis(operation) -> bool:
    axes, rank = tf.get_static_value(operation.inputs[1]), operation.inputs[0].shape.rank
    return rank and axes is not None and set(np.atleast_1d(axes)) <= {-1, rank - 1}


def _is_logits(tensor) -> bool:
    """Whether a crossentropy takes them, which normalizes in float32."""
    return any(operation.type in NORMALIZING for operation, _ in flow.uses(tensor))


def _rounding_of_labels(subject, number, tensor) -> float | None:
    """What an output's dtype rounds off its labels, by their spread; None: not labels like it."""
    step = subject.step
    if step is None or not step.predicted or subject.labels is None or number is None:
        return None
    if number >= len(subject.labels) or _is_logits(step.predicted[number]):
        return None
    labels = np.asarray(subject.labels[number])
    like = labels.dtype.kind == "f" and labels.ndim == tensor.shape.rank and len(labels) > 1
    if not like or labels.shape[-1] != tensor.shape[-1]:
        return None
    labels = labels.astype("float64")
    rounded = tf.cast(tf.constant(labels), tensor.dtype)
    apart = np.asarray(tf.cast(rounded, "float64")) - labels
    spread = np.std(labels, axis=0)
    share = np.sqrt(np.mean(apart**2, axis=0))[spread > 0] / spread[spread > 0]
    return float(share.max(initial=0.0))


def _walk(tensor):
    """An output, and what it was before it was cast, reshaped or moved."""
    found = [tensor]
    while tensor.op.type in flow.SAME and tensor.op.inputs[0].dtype.is_floating:
        tensor = tensor.op.inputs[0]
        found.append(tensor)
    return found


def _layers(subject, walk):
    """Paths of the layers that have to be float32, the last one first."""
    names = dict.fromkeys(subject.path(x.op) for x in walk if flow.is_half(x))
    return tuple(x for name in names for x in subject.float32(name))
