"""Variables that are half themselves, and what is computed of them."""

from collections.abc import Iterator

import keras
import tensorflow as tf

from tfmp import loss_scale
from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject
from tfmp.policies.choice import HALF

# Operations that give each number of a variable on by itself, so that its rounding stays in it. A
# product with a matrix, or a sum, makes new numbers.
NUMBER_BY_NUMBER = flow.ON_IDS | {"AddN", "Neg", "Square", "Rsqrt", "Sqrt", "Exp", "Log", "Tanh"}


def half_variables(subject: Subject) -> Iterator[Finding]:
    """Weights in float16 or bfloat16 lose their small updates.

    float16 keeps 11 significant bits, bfloat16 8. An update smaller than 2^-12 (2^-9) of its weight
    is rounded away: training stalls, and no loss scale helps. The same befalls moving averages, and
    metrics that count. It comes from `keras.config.set_floatx("float16")`, or from a policy named
    "float16" instead of "mixed_float16". Frozen weights may be half.

    Example:
        layer = keras.layers.Dense(1, dtype="float16")
        layer.build((None, 1))
        layer.kernel.assign([[1.0]])
        for _ in range(1000):
            layer.kernel.assign_add([[1e-4]])
        layer.kernel.numpy()  # still 1.0, instead of 1.1

    Mend:
        Build the model under mixed_float16 or mixed_bfloat16, which keep float32 weights, and load
        the weights into it.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.1.
        https://github.com/keras-team/keras/issues/4032
    """
    held = [part for part in subject.parts if _trains_in_half(part.layer)]
    if held and subject.model.dtype_policy.variable_dtype in HALF:
        names = [part.path for part in held]
        yield _half_weights(None, subject.model.dtype_policy.variable_dtype, names)
    else:
        # A layer of Keras' own and the parts in it have one name.
        for name in dict.fromkeys(part.path for part in held):
            layer = next(part.layer for part in held if part.path == name)
            yield _half_weights(name, layer.variable_dtype, [name])
    for metric in getattr(subject.model, "metrics", ()):
        dtypes = {str(v.dtype) for v in metric.variables}
        if dtypes & set(HALF):
            yield Finding(
                "half_variables",
                "warning",
                None,
                f"The metric {metric.name!r} counts in {min(dtypes)}, which stands still at 2048 "
                "(bfloat16: 256). Build it under a floatx of float32.",
                {"metric": metric.name},
            )


def weight_overflow(subject: Subject) -> Iterator[Finding]:
    """A weight beyond 65504 is infinite where it is read in half.

    Weights of a mixed policy are float32, and are cast as a layer reads them: a scale of 1 / 3e-6
    of a whitening, a price's mean or its variance is then infinite, and one whose weights are all
    below 3e-8 is zero. A checkpoint loaded into float16 variables is so once and for all: the
    variance of a `BatchNormalization` that is infinite makes all it gives the same. The doctor
    reads the weights.

    Example:
        inputs = keras.Input((2,))
        whiten = keras.layers.Dense(2, trainable=False, dtype="mixed_float16")
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(whiten(inputs)))
        whiten.kernel.assign([[1 / 3e-6, 0], [0, 1.0]])  # of a current in amperes
        model.predict(np.array([[3e-6, 1.0]]), verbose=0)  # infinite or NaN

    Mend:
        The layer in float32, which `fix` sets, or other units. Variables in float16: build the
        model under mixed_float16, and load the weights into it.

    References:
        IEEE 754-2019, binary16: the largest number is 65504.
    """
    named = {
        id(v): part.path
        for part in reversed(subject.parts)
        for v in [*part.layer._trainable_variables, *part.layer._non_trainable_variables]
    }
    for variable, path, dtype in _read_or_held(subject, named):
        largest = float(tf.reduce_max(tf.abs(tf.cast(variable._value, "float32")), axis=None))
        held = variable.dtype in HALF
        limit = flow.largest(tf.as_dtype(dtype))
        lost = 0 < largest <= flow.smallest(tf.as_dtype(dtype)) and variable.shape
        if not (largest > limit or lost):
            continue
        yield Finding(
            "weight_overflow",
            "error",
            path,
            f"Its {variable.name} reaches {largest:.4g}, which is "
            f"{'zero' if lost else 'infinite'} in {dtype}. "
            + (
                f"The variable is {dtype}: build the model under mixed_{dtype}, and load the "
                "weights again."
                if held
                else 'Give it dtype="float32".'
            ),
            {"largest": largest, "variable": variable.path},
            () if held else subject.float32(path),
        )


def _read_or_held(subject, named):
    """(variable, path of its layer, half dtype) of variables in half, or read in it."""
    seen = set()
    for variable in subject.model.variables:
        if variable.dtype in HALF:
            seen.add(id(variable))
            yield variable, named.get(id(variable)), str(variable.dtype)
    for operation in subject.trace.operations:
        if operation.type != "Cast" or not flow.is_half(operation.outputs[0]):
            continue
        for x in flow.sources(operation.inputs[0], flow.SAME - {"Cast"}):
            for variable in subject.trace.variables.get(id(x.op), ()):
                if id(variable) not in seen and x.dtype == tf.float32:
                    seen.add(id(variable))
                    path = subject.path(operation) or named.get(id(variable))
                    yield variable, path, operation.outputs[0].dtype.name


def rounded_state(subject: Subject) -> Iterator[Finding]:
    """A layer that updates a float32 variable from its value in half rounds it in every step.

    In `call` a layer reads its variables cast to the precision it computes in. A running mean that
    is assigned from such a reading has 11 bits, whatever its own dtype: changes below its rounding,
    as of a momentum of 0.999, are lost, and it stands still. A kernel that is normalized in place
    so loses what the optimizer had added to it, as in Keras' SpectralNormalization.

    Example:
        class Center(keras.layers.Layer):
            def build(self, shape):
                self.mean = self.add_weight(shape=shape[-1:], trainable=False)

            def call(self, inputs):
                mean = keras.ops.mean(inputs, axis=0)
                self.mean.assign(0.999 * self.mean + 0.001 * mean)  # reads it in float16
                return inputs - self.mean

    Mend:
        `add_weight(..., autocast=False)` and the update in float32, or `dtype="float32"` for the
        layer.

    References:
        https://github.com/tensorflow/addons/issues/2405
    """
    told = set()
    for looked, operation in ((x, y) for x in subject.everywhere for y in x.trace.operations):
        written = looked.trace.variables.get(id(operation), ())
        if operation.type != "AssignVariableOp" or not written:
            continue
        variable, path = written[0], subject.path(operation)
        if variable.dtype != "float32" or (path, variable.path) in told:
            continue
        if dtype := _read_in_half(looked, operation.inputs[1], variable):
            told.add((path, variable.path))
            yield Finding(
                "rounded_state",
                "error",
                path,
                f"Assigns to {variable.name!r} what it computes of its value in {dtype}: the "
                "float32 variable is rounded in every step, and small changes are lost. Make it "
                'with autocast=False and update it in float32, or give the layer dtype="float32".',
                {"variable": variable.path, "dtype": dtype},
                subject.float32(path),
            )


def _read_in_half(subject, value, variable) -> str | None:
    """The half dtype in which a value depends on a variable, number by number; None: in none."""
    stack, seen = [(value, None)], set()
    while stack:
        x, dtype = stack.pop()
        dtype = dtype or (x.dtype.name if flow.is_half(x) else None)
        if (id(x), dtype) in seen:
            continue
        seen.add((id(x), dtype))
        if x.op.type == "ReadVariableOp":
            if dtype and any(v is variable for v in subject.trace.variables.get(id(x.op), ())):
                return dtype
        elif x.op.type in ("If", "StatelessIf"):
            stack += [(given, dtype) for given in flow.of_branches(x)]
        elif x.op.type in NUMBER_BY_NUMBER:
            stack += [(given, dtype) for given in x.op.inputs]
    return None


def half_optimizer_epsilon(subject: Subject) -> Iterator[Finding]:
    """An optimizer's epsilon is lost where its slots are float16.

    An optimizer's slots have the dtype of their variables. In float16 Adam's second moment, the
    square of a gradient, is zero for gradients below 2e-4, and its epsilon of 1e-7 or 1e-8 rounds
    to 1.2e-7 or zero: the step becomes a gradient over nothing, infinite or NaN. With float32
    variables, as under mixed_float16, the same epsilon is right.

    Example:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, dtype="float16")])
        model.compile(keras.optimizers.Adam(epsilon=1e-8), "mse")
        model.fit(np.full((8, 1), 1e-4), np.zeros((8, 1)), verbose=0)
        model.get_weights()  # NaN

    Mend:
        float32 variables: a policy of mixed_float16 in place of float16.

    References:
        https://github.com/keras-team/keras/issues/11860
    """
    names = [
        part.path
        for part in subject.parts
        if part.layer.trainable
        and any(str(v.dtype) == "float16" for v in part.layer._trainable_variables)
    ]
    for name, optimizer in subject.optimizers if names else ():
        inner = loss_scale.inner(optimizer)
        epsilon = getattr(inner, "epsilon", None)
        # 2^-14 is the smallest number that float16 holds with all its bits.
        if isinstance(epsilon, float) and epsilon < 2.0**-14:
            yield Finding(
                "half_optimizer_epsilon",
                "error",
                None,
                f"{name} ({type(inner).__name__}) has an epsilon of {epsilon:g} and slots in "
                f"float16, as the variables of {', '.join(names[:3])} are: the epsilon is lost, "
                "and updates become infinite or NaN. Keep variables float32.",
                {"epsilon": epsilon, "layers": names[:20]},
            )


def half_loss(subject: Subject) -> Iterator[Finding]:
    """A loss that is computed in half overflows before it is scaled.

    Keras' losses compute in floatx, float32, whatever the model's policy is. Given a `dtype` of
    float16, or a floatx of float16, squares and sums of examples pass 65504, and so does the loss
    times its scale: every step is skipped.

    Example:
        loss = keras.losses.MeanSquaredError(dtype="float16")
        loss(np.zeros((1, 1)), np.full((1, 1), 300.0))  # inf

    Mend:
        Leave out the `dtype`, with a floatx of float32.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.3.
    """
    for loss in keras.tree.flatten(subject.loss):
        dtype = getattr(loss, "dtype", None)
        if isinstance(loss, keras.losses.Loss) and dtype in HALF:
            yield Finding(
                "half_loss",
                "error" if dtype == "float16" else "warning",
                None,
                f"The loss {loss.name!r} is computed in {dtype}: squares and sums overflow or are "
                "rounded before the loss scale. Leave out its dtype.",
                {"dtype": dtype, "loss": loss.name},
            )


def _trains_in_half(layer) -> bool:
    if not layer.trainable:
        return False
    moving = isinstance(layer, keras.layers.BatchNormalization)
    variables = [*layer._trainable_variables, *(layer._non_trainable_variables if moving else ())]
    return any(str(v.dtype) in HALF for v in variables)


def _half_weights(name, dtype, names):
    bits = {"float16": 11, "bfloat16": 8}[dtype]
    return Finding(
        "half_variables",
        "error",
        name,
        f"Weights are {dtype} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}): updates "
        f"below 2^-{bits + 1} of a weight are rounded away, and training stalls. Build it under "
        f"mixed_{dtype}, which keeps float32 weights.",
        {"dtype": dtype, "significant_bits": bits, "layers": names[:20]},
    )
