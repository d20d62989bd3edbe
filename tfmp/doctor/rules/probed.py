"""What running a model on a batch shows (`tfmp.doctor.probe`)."""

from collections.abc import Iterator

from tfmp.doctor.finding import Finding, Severity
from tfmp.doctor.probe.values import Fault, Underflow
from tfmp.doctor.subject import Subject

# Doublings left to the largest float16; with fewer a finding says so.
HEADROOM = 2.0
# Error, and loss of a gradient by its norm, from which a finding is an error.
GRAVE = 0.3
# Share of a layer's gradient, by its numbers, or by its norm, whose loss is a finding.
LOST_NUMBERS, LOST_NORM = 0.5, 0.1


def half_overflow(subject: Subject) -> Iterator[Finding]:
    """A layer gives infinity or NaN where float32 gives numbers.

    The largest float16 is 65504. Sums over many values, products, squares, exponentials and raw
    inputs (times, prices, pixels of 16 bits) go beyond it, and the first infinity becomes NaN in
    the next subtraction or division. An epsilon below 6e-8 is 0 in float16, so that what it kept
    from being divided by zero is. The layer is run in both precisions on the same inputs, so it
    is the one where that arises and not one that it reaches.

    Example:
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(8, dtype="mixed_float16")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(hidden))
        model.predict(np.full((1, 4), 1e6), verbose=0)  # NaN or infinity

    Mend:
        Bring the inputs to a size of about 1, in float32 (`Normalization` or `Rescaling` with
        `dtype="float32"`), or give the layer `dtype="float32"`, and those behind it that take what
        it gives. `fix` does the latter.

    References:
        tensorflow/tensorflow#47156: the variance of an instance normalization.
        keras-team/keras#22586: a GroupNormalization of values around 65504.
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.3.
    """
    for fault in _faults(subject, "forward", "overflow", "nan"):
        what = "infinity" if fault.kind == "overflow" else "NaN"
        text = f"Gives {what} in {fault.dtype} where float32 gives up to {fault.largest_output:.4g}"
        yield _finding("half_overflow", subject, fault, text)


def inner_overflow(subject: Subject) -> Iterator[Finding]:
    """A sum, norm or variance overflows inside a layer whose inputs and outputs are finite.

    The square of 256 is above 65504. A norm that is infinite inside makes zeros of what is divided
    by it: nothing is NaN, no loss scale reacts, and the layer is silently wrong.

    Example:
        layer = keras.layers.UnitNormalization(dtype="mixed_float16")
        layer(np.full((1, 4), 300.0))  # zeros, and not 0.5

    Mend:
        Give the layer `dtype="float32"`, which `fix` does; in a layer of your own, cast to float32
        before the sum and back after the division.

    References:
        keras-team/keras#23546: `ops.normalize` in float16.
        tensorflow/tensorflow#47156: means and variances in float16.
    """
    for fault in _faults(subject, "forward", "flush", "departure"):
        if fault.inner:
            text = (
                f"{fault.operation} overflows {fault.dtype} inside it, for inputs of up to "
                f"{fault.largest_input:.4g}; its outputs are finite and wrong by "
                f"{_percent(fault.error)}"
            )
            yield _finding("inner_overflow", subject, fault, text)


def flush_to_zero(subject: Subject) -> Iterator[Finding]:
    """A layer gives zeros where float32 gives small numbers.

    Below 6e-8 float16 has nothing but zero, and below 6e-5 fewer digits. Products of
    probabilities, squares of small differences and exponentials of large negative numbers vanish;
    a logarithm or a division behind them makes infinity of it.

    Example:
        inputs = keras.Input((8,))
        product = keras.layers.Lambda(lambda x: keras.ops.prod(x, axis=-1), dtype="mixed_float16")
        model = keras.Model(inputs, product(inputs))
        model.predict(np.full((1, 8), 0.1), verbose=0)  # 0, and not 1e-8

    Mend:
        Give the layer `dtype="float32"` (`fix` does), or add logarithms in place of multiplying.

    References:
        keras-team/keras#23546: epsilon squared is 0 in float16.
    """
    for fault in _faults(subject, "forward", "flush"):
        if not fault.inner:
            text = (
                f"Gives zeros in {fault.dtype} where float32 gives up to "
                f"{fault.largest_output:.4g}; {_percent(fault.error)} of its output is lost"
            )
            yield _finding("flush_to_zero", subject, fault, text)


def leaves_float32(subject: Subject) -> Iterator[Finding]:
    """A layer's output differs from float32 by more than rounding it explains.

    float16 has 11 significant bits and bfloat16 8: integers above 2048 (256) merge, a sum of many
    terms stops growing, and a small difference of large numbers has no right digit. Rounding the
    inputs as half does is tried in float32; what a layer adds to that many times over is its own
    loss. So is a large error that rounding the inputs does explain, such as the sine of a
    position of 5001.

    Example:
        inputs = keras.Input((1,))
        phase = keras.layers.Lambda(lambda x: keras.ops.sin(x), dtype="mixed_float16")
        model = keras.Model(inputs, phase(inputs))
        model.predict(np.array([[5001.0]]), verbose=0)  # sin(5000)

    Mend:
        Give the layer `dtype="float32"`, which `fix` does; keep positions, times and counts
        integers until they are embedded.

    References:
        EleutherAI/gpt-neox#1003: rotary embeddings whose phases are computed in half.
        vllm-project/vllm#54620: sinusoidal positions computed in float16.
    """
    for fault in _faults(subject, "forward", "departure"):
        if not fault.inner:
            text = (
                f"Differs from float32 by {_percent(fault.error)} in {fault.dtype}; rounding its "
                f"inputs explains {_percent(fault.explained)}"
            )
            yield _finding("leaves_float32", subject, fault, text)


def fails_in_half(subject: Subject) -> Iterator[Finding]:
    """A layer raises an error in half and none in float32.

    Most often it mixes a float32 constant with its float16 inputs: TensorFlow doesn't convert.

    Example:
        class Scaled(keras.layers.Layer):
            def call(self, inputs):
                return inputs * tf.constant([2.0])

        Scaled(dtype="mixed_float16")(np.ones((1, 4)))  # InvalidArgumentError

    Mend:
        Cast constants to `self.compute_dtype`, or give the layer `dtype="float32"` (`fix` does).

    References:
        tensorflow/tensorflow#46064: attention layers under a mixed policy.
    """
    for fault in _faults(subject, "forward", "raises"):
        error = (subject.probe.error or "").strip().split("\n")[0][:200]
        text = f"Raises an error in {fault.dtype} and none in float32: {error}"
        yield _finding("fails_in_half", subject, fault, text)


def backward_overflow(subject: Subject) -> Iterator[Finding]:
    """The gradient that a layer passes on, or that of its weights, is infinite or NaN.

    It is so without any loss scale, which therefore can't mend it: with one, every step is
    skipped, and the scale falls until nothing is left of it. The slope of a square root, of a
    logarithm or of a norm near zero is beyond 65504 long before the value is; sums over the batch
    overflow in the gradients of weights.

    Example:
        inputs = keras.Input((4,))
        root = keras.layers.Lambda(lambda x: keras.ops.sqrt(x * 1e-3), dtype="mixed_float16")
        model = keras.Model(inputs, root(inputs))  # slopes at 1e-5 are above 65504 in between

    Mend:
        Give the layer `dtype="float32"`, which `fix` does; take means and not sums in the loss.

    References:
        keras-team/keras#16100: a scale at 1, and all steps skipped.
        keras-team/keras#23546: infinite slopes of `ops.normalize` for inputs of 0.01.
        tensorflow/tensorflow#38357: a loss that overflows at a scale of 1.
    """
    for fault in _faults(subject, "backward", "overflow", "nan"):
        where = "its gradient" if fault.layer else "the gradient of the loss"
        text = f"Without a loss scale, {where} is infinite or NaN in {fault.dtype}, not in float32"
        yield _finding("backward_overflow", subject, fault, text)


def backward_loss(subject: Subject) -> Iterator[Finding]:
    """The gradient that a layer passes on differs from float32's by more than rounding explains.

    It does so at the loss scale that training settles on, from the same gradient that came to the
    layer: the layer itself loses it.

    Example:
        inputs = keras.Input((4,))
        square = keras.layers.Lambda(lambda x: keras.ops.square(x * 1e-5) * 1e5)
        model = keras.Model(inputs, square(inputs))  # slopes of 1e-10 in between are zero

    Mend:
        Give the layer `dtype="float32"`, which `fix` does.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
    """
    for fault in _faults(subject, "backward", "flush", "departure"):
        if not _wrong(subject, fault):
            continue
        text = (
            f"Its gradient differs from float32's by {_percent(fault.error)} in {fault.dtype}; "
            f"rounding explains {_percent(fault.explained)}"
        )
        yield _finding("backward_loss", subject, fault, text)


def gradient_underflow(subject: Subject) -> Iterator[Finding]:
    """Gradients of weights are zero in half and not in float32.

    Gradients below 6e-8 are zero in float16. A loss scale lifts them; without one, or where one
    large gradient elsewhere keeps the scale low, the weights of a layer don't move.

    Example:
        model.compile(optimizer, loss, auto_scale_loss=False)  # under mixed_float16

    Mend:
        Train with a loss scale (`tfmp.compile`). Where there is one and it can't rise, put the
        layers with the largest gradients in float32.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2 and figure 3.
        tensorflow/tensorflow#47884: gradients of 0 under a mixed policy.
    """
    probe = subject.probe
    # Behind a layer at fault gradients are lost in its train.
    if probe is None or probe.scale is None or any(_wrong(subject, x) for x in probe.faults):
        return
    lost = list(filter(_loses, probe.underflows))
    if not lost:
        return
    worst = max(lost, key=lambda x: (x.lost, _share(x)))
    count = f"of {len(lost)} layers" if len(lost) > 1 else f"of {worst.layer}"
    scale = (
        "without a loss scale" if worst.scaled is None else f"at a loss scale of {probe.scale:g}"
    )
    if worst.scaled is None:
        mend = "Train with a loss scale: tfmp.compile, or keras.optimizers.LossScaleOptimizer."
    else:
        mend = (
            f"The scale can't rise to {probe.wanted_scale:g}: put the layers with the largest "
            "gradients in float32."
        )
    yield Finding(
        "gradient_underflow",
        "warning" if probe.drawn or worst.lost < GRAVE else "error",
        worst.layer if len(lost) == 1 else None,
        f"Gradients {count} are zero {scale} and not in float32: {_percent(_share(worst))} of the "
        f"numbers of {worst.layer}, {_percent(worst.lost)} by norm. {mend}",
        {
            "layers": {x.layer: {"numbers": _share(x), "norm": x.lost} for x in lost},
            "scale": probe.scale,
            "drawn": probe.drawn,
        },
    )


def update_underflow(subject: Subject) -> Iterator[Finding]:
    """A step of the optimizer doesn't move half weights that it moves in float32.

    A float16 weight of 1 has no neighbor nearer than 0.0005: smaller updates are rounded away,
    each time. A copy of the weights takes a step in both precisions.

    Example:
        keras.config.set_dtype_policy("float16")  # and not mixed_float16
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(1e-5), "mse")  # its weights stay as they are

    Mend:
        Use `mixed_float16` or `mixed_bfloat16`, which keep weights in float32.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.1.
    """
    for lost in subject.probe.underflows if subject.probe else ():
        if lost.updates is not None and lost.updates > LOST_NORM:
            yield Finding(
                "update_underflow",
                "error" if lost.updates > LOST_NUMBERS else "warning",
                lost.layer,
                f"A step moves {_percent(lost.updates)} of its weights in float32 only: they are "
                "half, and their updates are rounded away. Use a mixed policy.",
                {"updates": lost.updates, "drawn": subject.probe.drawn},
            )


def little_headroom(subject: Subject) -> Iterator[Finding]:
    """A layer's float16 outputs are within a factor of four of 65504.

    Nothing is wrong on this batch. Weights grow in training, and other inputs are larger.

    Example:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(20000.0)])

    Mend:
        Scale the inputs, put a normalization before the layer, or give it `dtype="float32"`.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2, on the range.
    """
    for span in subject.probe.spans if subject.probe else ():
        near = span.headroom is not None and span.headroom < HEADROOM
        if near and span.dtype == "float16" and not _faulty(subject, span.layer):
            yield Finding(
                "little_headroom",
                "info",
                span.layer,
                f"Its outputs reach {span.largest:.4g}, {span.headroom:.1f} doublings from the "
                "largest float16.",
                {
                    "largest": span.largest,
                    "headroom_bits": span.headroom,
                    "drawn": subject.probe.drawn,
                },
            )


def not_probed(subject: Subject) -> Iterator[Finding]:
    """The model raises an error on the batch, in float32 too, so the doctor can't say more.

    Either the batch isn't what the model takes, or the device lacks an operation, such as the
    gradient of a grouped convolution on a CPU.

    Example:
        diagnose(model, inputs=np.zeros((4, 3)))  # of a model that takes 4 features

    Mend:
        Give the batch, labels and loss that `fit` gets.

    References:
        None: it is about the doctor itself.
    """
    probe = subject.probe
    if probe is not None and probe.error is not None and not probe.faults:
        first = probe.error.strip().split("\n")[0][:200]
        yield Finding("not_probed", "info", None, f"Running the model failed: {first}")
    for text in probe.unjudged if probe else ():
        yield Finding("not_probed", "info", None, f"A layer couldn't be run alone: {text[:200]}")


def _faults(subject, direction, *kinds) -> list[Fault]:
    faults = subject.probe.faults if subject.probe else ()
    return [x for x in faults if x.direction == direction and x.kind in kinds]


def _wrong(subject, fault) -> bool:
    """Whether a fault is the layer's own, and no lack of a loss scale."""
    flushed = fault.direction == "backward" and fault.kind == "flush"
    return not (flushed and fault.dtype == "float16" and subject.probe.wanted_scale is None)


def _faulty(subject, layer) -> bool:
    return any(x.layer == layer for x in subject.probe.faults)


def _finding(rule, subject, fault, text) -> Finding:
    """A finding of a fault: what it was measured on decides how sure it is."""
    small = fault.error is not None and fault.error < GRAVE
    severity: Severity = "warning" if small or fault.behind or subject.probe.drawn else "error"
    text += f", first in {fault.operation}. " if fault.operation and not fault.inner else ". "
    if fault.behind:
        text += "Seen once the layers at fault before it compute in float32. "
    if subject.probe.drawn:
        text += "Seen on random inputs: give a batch to be sure. "
    mends = fault.is_layer and fault.layer is not None
    if mends:
        text += 'Give it dtype="float32".'
    elif fault.layer:
        text += "Cast what this operation takes to float32."
    elif fault.direction == "backward" and fault.kind in ("overflow", "nan"):
        text += "Cast what the loss, or the model's own call, takes to float32."
    else:
        text += "Cast to float32 in the model's own call."
    evidence = {
        "dtype": fault.dtype,
        "operation": fault.operation,
        "error": fault.error,
        "explained": fault.explained,
        "largest_input": fault.largest_input,
        "largest_output": fault.largest_output,
        "drawn": subject.probe.drawn,
    }
    known = {k: v for k, v in evidence.items() if v is not None}
    return Finding(rule, severity, fault.layer, text, known, (fault.layer,) if mends else ())


def _share(lost: Underflow) -> float:
    return lost.unscaled if lost.scaled is None else lost.scaled


def _loses(lost: Underflow) -> bool:
    return _share(lost) > LOST_NUMBERS or lost.lost > LOST_NORM


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{100 * share:.2g} %"
