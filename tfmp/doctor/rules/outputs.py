"""Outputs of a model."""

from collections.abc import Iterator

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject

# What maps a model's last values to probabilities.
SQUASHING = ("Softmax", "Sigmoid")


def half_output(subject: Subject) -> Iterator[Finding]:
    """A model that ends in float16 rounds its predictions.

    A probability below 6e-8 becomes 0 and one above 0.9998 becomes 1, so that confident examples
    give a wrong loss and no gradient; a regression keeps three digits. Keras' losses compute in
    float32, but what was rounded before stays so, also where a cast follows. Whatever calls
    `predict`, or loads the exported model, gets float16.

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
    tensors = [*((x, True) for x in trace.outputs), *((x, False) for x in trace.parts)]
    for tensor, whole in tensors:
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
        yield Finding(
            "half_output",
            # What a part of a model gives may be meant for another part.
            "error" if squashed else "warning" if whole else "info",
            name,
            f"The model's output is computed in {dtype.name}"
            + ("" if flow.is_half(tensor) else " and cast after it was rounded")
            + (
                ": small probabilities become 0, large ones 1, and their gradients vanish. "
                if squashed
                else ": its values are rounded to three digits or fewer. "
            )
            + 'Give the last layers dtype="float32".',
            {"dtype": dtype.name, "operation": made_by.type},
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
