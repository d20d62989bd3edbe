"""What XLA refuses, and what turns it off."""

import functools
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.framework import kernels  # what is registered in this TensorFlow
from tensorflow.python.framework.config import is_op_determinism_enabled  # no public one

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject
from tfmp.doctor.trace import is_graph

# Operations that XLA takes care of before it compiles.
OUTSIDE = {"Placeholder", "NoOp", "Const", "StatefulPartitionedCall", "PartitionedCall", "While"}
OUTSIDE |= {"StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "Assert"}


def xla_off(subject: Subject) -> Iterator[Finding]:
    """One layer that doesn't support XLA turns it off for the whole model.

    Keras asks each layer; if one says no, `jit_compile="auto"` is False without a word and
    `jit_compile=True` with a warning. Most random image layers say no, and so do those of strings
    and lookup tables. Without XLA half precision gains little or nothing in Keras 3: ResNet-50 in
    mixed_float16 trained 755 images a second on an H100, with XLA 5,818. LSTM and GRU say no, too,
    where they use cuDNN instead, which is no loss by itself.

    Example:
        model = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.RandomRotation(0.1, dtype="float32"),
                keras.layers.Conv2D(8, 3, dtype="mixed_float16"),
            ]
        )
        model.compile("sgd", "mse", jit_compile=True)
        model.jit_compile  # False

    Mend:
        Augment in `tf.data`, or by a pure function before the model (`tfmp.data.augment`).

    References:
        https://github.com/tensorflow/tensorflow/issues/100865
    """
    if not (subject.half_parts or getattr(subject.model, "jit_compile", False)):
        return
    for part in subject.parts:
        # (Models and wrappers ask their layers.)
        if part.layer.supports_jit or part.hidden or is_graph(part.layer):
            continue
        cudnn = getattr(part.layer, "use_cudnn", None) in (True, "auto")
        yield Finding(
            "xla_off",
            "info" if cudnn else "warning",
            part.path,
            f"{type(part.layer).__name__} doesn't support XLA, so that Keras turns it off for the "
            "whole model. "
            + (
                "It uses cuDNN instead; with use_cudnn=False XLA compiles all."
                if cudnn
                else "Move it in front of the model, into the data pipeline."
            ),
            {"supports_jit": False},
        )
    if is_op_determinism_enabled() and subject.half_parts:
        yield Finding(
            "xla_off",
            "info",
            None,
            "Operations are deterministic (enable_op_determinism), so that Keras turns XLA off.",
            {"deterministic": True},
        )


def xla_refuses(subject: Subject) -> Iterator[Finding]:
    """An operation without an XLA kernel stops training at its first step.

    On a GPU `jit_compile="auto"` compiles every model whose layers don't say no, and a layer of
    one's own doesn't. An operation that this TensorFlow has no kernel for, or none of that dtype,
    then fails with "Detected unsupported operations".

    Example:
        class Centered(keras.layers.Layer):
            def call(self, x):
                return x - tf.ensure_shape(tf.numpy_function(np.median, [x], x.dtype), ())

        model = keras.Sequential([keras.Input((4,)), Centered()])
        model.compile("sgd", "mse", jit_compile=True)
        model.fit(np.zeros((2, 4)), np.zeros((2, 4)))  # fails

    Mend:
        Set `self.supports_jit = False` in the layer's constructor, which turns XLA off, or move the
        operation into the data pipeline.

    References:
        https://github.com/tensorflow/tensorflow/issues/14798
        TensorFlow's registry of kernels, as installed.
    """
    if not _compiled(subject):
        return
    found: dict[str | None, list[str]] = {}
    for operation in subject.trace.operations:
        call = subject.trace.owners.get(id(operation))
        if operation.type in OUTSIDE or (call and not getattr(call.called, "supports_jit", True)):
            continue
        if not _has_kernel(operation):
            found.setdefault(subject.path(operation), []).append(operation.type)
    for name, types in found.items():
        yield Finding(
            "xla_refuses",
            "error" if _surely(subject) else "warning",
            name,
            f"XLA has no kernel for {', '.join(dict.fromkeys(types))} here: training fails where "
            "it compiles. Compile with jit_compile=False, set supports_jit = False in the layer, "
            "or move the operation in front of the model.",
            {"operations": list(dict.fromkeys(types))},
        )


def half_resize(subject: Subject) -> Iterator[Finding]:
    """The gradient of bilinear resizing is float32, and XLA refuses to mix it with half.

    TensorFlow resizes to float32 and Keras casts the result; under XLA the gradient comes back as
    float32 where float16 went in, and the activation before it fails to compile. So
    `UpSampling2D(interpolation="bilinear")` can't train in half under XLA, `jit_compile="auto"` on
    a GPU included.

    Example:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 3, activation="relu", dtype="mixed_float16"),
                keras.layers.UpSampling2D(interpolation="bilinear", dtype="mixed_float16"),
            ]
        )
        model.compile("sgd", "mse", jit_compile=True)
        model.fit(np.zeros((1, 8, 8, 3)), np.zeros((1, 12, 12, 4)))  # fails

    Mend:
        `dtype="float32"` for that layer, which `fix` sets.

    References:
        https://github.com/keras-team/keras/issues/20931
        https://github.com/openxla/xla/issues/43052
    """
    if not _compiled(subject):
        return
    seen = set()
    trained = flow.reached(subject.trace, subject.model.trainable_variables)
    for operation in subject.trace.operations:
        if operation.inputs and id(operation.inputs[0].op) not in trained:
            continue  # nobody asks for its gradient
        if operation.type not in ("ResizeBilinear", "ResizeBicubic"):
            continue
        if not flow.is_half(operation.inputs[0]) or not _gradient_fails(operation.type):
            continue
        name = subject.path(operation)
        if name in seen:
            continue
        seen.add(name)
        yield Finding(
            "half_resize",
            "error" if _surely(subject) else "warning",
            name,
            f"XLA can't compile the gradient of {operation.type} in "
            f'{operation.inputs[0].dtype.name}: give the layer dtype="float32".',
            {"operation": operation.type, "dtype": operation.inputs[0].dtype.name},
            subject.float32(name),
        )


def _compiled(subject) -> bool:
    """Whether XLA may compile the model: it says so, or it is half and nobody has said anything."""
    open_yet = not getattr(subject.model, "compiled", False) and bool(subject.half_parts)
    return open_yet or _surely(subject)


def _surely(subject) -> bool:
    return bool(getattr(subject.model, "compiled", False) and subject.model.jit_compile)


@functools.cache
def _kernels(kind: str) -> dict[str, list[dict[str, frozenset]]]:
    """By device of XLA the dtypes that each kernel of an operation takes, by attribute."""
    _register()
    found: dict[str, list] = {}
    for kernel in kernels.get_registered_kernels_for_op(kind).kernel:
        if kernel.device_type in ("XLA_CPU_JIT", "XLA_GPU_JIT"):
            allowed = {x.name: frozenset(x.allowed_values.list.type) for x in kernel.constraint}
            found.setdefault(kernel.device_type, []).append(allowed)
    return found


@functools.cache
def _register() -> None:
    """Makes TensorFlow register XLA's kernels, which it does when it first compiles."""
    tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))


def _has_kernel(operation) -> bool:
    found = _kernels(operation.type)
    for device in ("XLA_CPU_JIT", "XLA_GPU_JIT"):
        if not any(_takes(operation, allowed) for allowed in found.get(device, ())):
            return False
    return True


def _takes(operation, allowed) -> bool:
    for name, types in allowed.items():
        try:
            given = operation.get_attr(name)
        except ValueError:
            continue
        given = given if isinstance(given, list) else [given]
        if not all(tf.as_dtype(x).as_datatype_enum in types for x in given):
            return False
    return True


@functools.cache
def _gradient_fails(kind: str) -> bool:
    """Whether this TensorFlow's XLA fails on a resizing's gradient in float16."""
    method = {"ResizeBilinear": "bilinear", "ResizeBicubic": "bicubic"}[kind]

    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.image.resize(tf.nn.relu(x), (4, 4), method=method)
        return tape.gradient(y, x)

    try:
        gradient(tf.ones((1, 2, 2, 1), tf.float16))
    except (tf.errors.InvalidArgumentError, tf.errors.InternalError, tf.errors.UnimplementedError):
        return True
    return False
