"""The gradients and updates of a batch: `tfmp.doctor.probe` runs a training step."""

from collections.abc import Iterator

from tfmp.doctor.finding import Finding
from tfmp.doctor.probe.proportion import SCALE
from tfmp.doctor.probe.values import Underflow
from tfmp.doctor.rules import scaling
from tfmp.doctor.rules.probed import GRAVE, faults, finding, own, percent
from tfmp.doctor.subject import Subject

# Share of a layer's gradient, by its numbers, or by its norm, whose loss is a finding.
LOST_NUMBERS, LOST_NORM = 0.5, 0.1
# Rules that find some of it in the source, and say more.
SAID_BY = scaling.unscaled_loss, scaling.clipped_before_unscaling


def backward_overflow(subject: Subject) -> Iterator[Finding]:
    """The gradient that a layer passes on, or that of its weights, is infinite or NaN.

    It is so without any loss scale, which therefore can't mend it: with one, every step is
    skipped, and the scale falls until nothing is left of it. The slope of a square root, of a
    logarithm or of a norm near zero is beyond 65504 long before the value is; sums over the batch
    overflow in the gradients of weights.

    Example:
        inputs = keras.Input((4,))
        root = keras.layers.Lambda(lambda x: keras.ops.sqrt(x + 1e-9), dtype="mixed_float16")
        outputs = root(keras.layers.Dense(4, "relu")(inputs))
        model = keras.Model(inputs, outputs)  # 1e-9 is 0 in float16, and the slope at 0 infinite

    Mend:
        Give the layer `dtype="float32"`, which `fix` does; take means and not sums in the loss.

    References:
        keras-team/keras#16100: a scale at 1, and all steps skipped.
        keras-team/keras#23546: infinite slopes of `ops.normalize` for inputs of 0.01.
        tensorflow/tensorflow#38357: a loss that overflows at a scale of 1.
    """
    for fault in faults(subject, "backward", "overflow", "nan"):
        where = "its gradient" if fault.layer else "the gradient of the loss"
        text = (
            f"Without a loss scale, {where} is infinite or NaN in {fault.dtype} and not in float32"
        )
        yield finding("backward_overflow", subject, fault, text)


def backward_loss(subject: Subject) -> Iterator[Finding]:
    """The gradient that a layer passes on differs from float32's by more than rounding explains.

    It does so at the loss scale that training settles on, from the same gradient that came to the
    layer: the layer itself loses it.

    Example:
        inputs = keras.Input((4,))
        gate = keras.layers.Lambda(lambda x: keras.ops.sigmoid(x + 10), dtype="mixed_float16")
        outputs = gate(keras.layers.Dense(4)(inputs))
        model = keras.Model(inputs, outputs)  # its outputs are 1 in float16, and their slopes 0

    Mend:
        Give the layer `dtype="float32"`, which `fix` does.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
    """
    for fault in faults(subject, "backward", "flush", "departure"):
        if not own(subject, fault):
            continue
        text = (
            f"Its gradient differs from float32's by {percent(fault.error)} in {fault.dtype}; "
            f"rounding explains {percent(fault.explained)}"
        )
        yield finding("backward_loss", subject, fault, text)


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
    if probe is None or probe.guessed or probe.scale is None:
        return
    if not subject.uses_float16:
        return  # bfloat16 reaches as far down as float32; its zeros are those of other ReLUs
    if any(own(subject, x) for x in probe.faults):
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
        worst.layer if len(lost) == 1 else probe.limiting,
        f"Gradients {count} are zero {scale} and not in float32: {percent(_share(worst))} of the "
        f"numbers of {worst.layer}, {percent(worst.lost)} by norm. {mend}",
        {
            "layers": {x.layer: {"numbers": _share(x), "norm": x.lost} for x in lost},
            "scale": probe.scale,
            "drawn": probe.drawn,
        },
    )


def gradients_off_scale(subject: Subject) -> Iterator[Finding]:
    """Gradients that don't grow with the loss scale come out of the optimizer wrong.

    An optimizer with a loss scale divides what it gets by the scale. Where a `train_step` never
    scaled the loss, has divided the gradients itself, or clips them while they are scaled, updates
    are too small by that factor, 32768 at first. The doctor runs the step at two scales, in
    float32.

    Example:
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.optimizer.scale_loss(keras.ops.mean((self(x) - y) ** 2))
                gradients = tape.gradient(loss, self.trainable_variables)
                scale = self.optimizer.dynamic_scale
                gradients = [x / scale for x in gradients]  # apply divides them again
                self.optimizer.apply(gradients, self.trainable_variables)
                return {"loss": loss}

    Mend:
        Scale the loss once, by `optimizer.scale_loss(loss)` inside of the tape, and hand its
        gradients over as they are; let the inner optimizer clip.

    References:
        https://github.com/keras-team/keras/issues/20894
    """
    for name, factor in subject.probe.off_scale if subject.probe else ():
        if any(True for rule in SAID_BY for _ in rule(subject)):
            return
        yield Finding(
            "gradients_off_scale",
            "error",
            None,
            f"With a loss scale of {SCALE:g} the gradients that {name} gets are "
            f"{factor * SCALE:.3g} times those without: it divides by the scale, so updates are "
            "off by the rest. Scale the loss by optimizer.scale_loss inside of the tape, hand its "
            "gradients over as they are, and let the inner optimizer clip.",
            {"optimizer": name, "factor": factor, "drawn": subject.probe.drawn},
        )


def fixed_scale_overflows(subject: Subject) -> Iterator[Finding]:
    """A fixed loss scale that is too large makes weights NaN, since nothing skips the step.

    `loss_scale_factor` of a Keras optimizer multiplies the loss and divides the gradients, and
    looks at neither: what overflows in between is applied.

    Example:
        optimizer = keras.optimizers.Adam(loss_scale_factor=1e9)
        model.compile(optimizer, "mse", auto_scale_loss=False)

    Mend:
        `tfmp.LossScaleOptimizer`, which skips such a step and lowers its scale, or a smaller
        factor.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2.
    """
    probe = subject.probe
    fixed = [name for name, x in subject.optimizers if x.loss_scale_factor]
    if probe and fixed and probe.scale and (probe.wanted_scale or 0) > 2 * probe.scale:
        yield Finding(
            "fixed_scale_overflows",
            "warning" if probe.drawn or probe.guessed else "error",
            None,
            f"{fixed[0]} has a loss_scale_factor of {probe.wanted_scale:g}, with which gradients "
            f"overflow in float16, and nothing skips the step: on this batch {probe.scale:g} is "
            "the largest power of two that fits. Use tfmp.LossScaleOptimizer, which finds it.",
            {"factor": probe.wanted_scale, "fits": probe.scale, "drawn": probe.drawn},
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
                f"A step moves {percent(lost.updates)} of its weights in float32 only: they are "
                "half, and their updates are rounded away. Use a mixed policy.",
                {"updates": lost.updates, "drawn": subject.probe.drawn},
            )


def _share(lost: Underflow) -> float:
    return lost.unscaled if lost.scaled is None else lost.scaled


def _loses(lost: Underflow) -> bool:
    return _share(lost) > LOST_NUMBERS or lost.lost > LOST_NORM
