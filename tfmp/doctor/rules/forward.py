"""What layers give on a batch: `tfmp.doctor.probe` runs the model."""

import dataclasses
from collections.abc import Iterator

from tfmp.doctor.finding import Finding
from tfmp.doctor.rules.probed import faults, finding, percent
from tfmp.doctor.subject import Subject


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
    for fault in faults(subject, "forward", "overflow", "nan"):
        what = "infinity" if fault.kind == "overflow" else "NaN"
        text = f"Gives {what} in {fault.dtype} where float32 gives up to {fault.largest_output:.4g}"
        yield finding("half_overflow", subject, fault, text)


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
    for fault in faults(subject, "forward", "flush", "departure"):
        if fault.inner:
            text = (
                f"{fault.operation} overflows {fault.dtype} inside it, for inputs of up to "
                f"{fault.largest_input:.4g}; its outputs are finite and wrong by "
                f"{percent(fault.error)}"
            )
            yield finding("inner_overflow", subject, fault, text)


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
    for fault in faults(subject, "forward", "flush"):
        if not fault.inner:
            text = (
                f"Gives zeros in {fault.dtype} where float32 gives up to "
                f"{fault.largest_output:.4g}; {percent(fault.error)} of its output is lost"
            )
            yield finding("flush_to_zero", subject, fault, text)


def leaves_float32(subject: Subject) -> Iterator[Finding]:
    """A layer's output differs from float32 by more than rounding it explains.

    float16 has 11 significant bits and bfloat16 8: integers above 2048 (256) merge, a sum of many
    terms stops growing, and a small difference of large numbers has no right digit. Rounding the
    inputs as half does is tried in float32; what a layer adds to that many times over is its own
    loss. So is a large error that rounding the inputs does explain, such as the sine of a
    position of 5001. An error is small next to the results, or, where these are all about the same
    as probabilities near 1 are, next to how far they differ.

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
    for fault in faults(subject, "forward", "departure"):
        if not fault.inner:
            text = (
                f"Differs from float32 by {percent(fault.error)} in {fault.dtype}; rounding its "
                f"inputs explains {percent(fault.explained)}"
            )
            yield finding("leaves_float32", subject, fault, text)


def cancellation(subject: Subject) -> Iterator[Finding]:
    """A layer gives the small difference of numbers that half has rounded.

    u(x + h) - u(x), or |a|² - 2ab + |b|², of numbers that agree in their first three digits has no
    right digit where they were computed in float16, and a division by h² magnifies what is left.
    Computing the layer alone in float32 changes nothing, since what it takes is rounded already.
    The doctor compares each layer with the model's run in float32: what it took was right to 2 %,
    what it gives is off by 30 % or more. A model of one's own casts its float inputs to its compute
    dtype, as a layer does: dates in float32 are rounded before a layer with `dtype="float32"`
    takes them.

    Example:
        class Slope(keras.layers.Layer):
            def __init__(self, net, **kwargs):
                super().__init__(**kwargs)
                self.net = net

            def call(self, x):  # of a net in half
                return (self.net(x + 1e-3) - self.net(x)) / 1e-3

    Mend:
        `dtype="float32"` for the layer and for those whose outputs it takes; `fix` sets those that
        are within it. Or a derivative by a tape in place of differences.

    References:
        Higham, "Accuracy and Stability of Numerical Algorithms", section 1.7, on cancellation.
        Seen on Keras 3.15.
    """
    for fault in faults(subject, "forward", "cancels"):
        if fault.takes_cast is not None:
            text = (
                f"The model casts its inputs to {fault.dtype}: what {fault.takes_cast} makes of "
                f"them, in float32, differs by {percent(fault.error)}"
            )
        else:
            text = (
                f"Differs from the run in float32 by {percent(fault.error)}, while what it takes "
                f"is right to {percent(fault.explained)}: in {fault.dtype} only rounding is left "
                "of a difference, or it is magnified. Layers whose outputs it takes have to be "
                "float32, too"
            )
        found = finding("cancellation", subject, fault, text)
        within = [x.path for x in subject.half_parts if x.path.startswith(f"{fault.layer}/")]
        mends = tuple(dict.fromkeys([*found.float32, *within])) if found.float32 else ()
        yield dataclasses.replace(found, float32=mends)


def other_choice(subject: Subject) -> Iterator[Finding]:
    """A layer chooses another code, expert or class among scores in half.

    The largest or smallest of scores that are large and close together, such as squared distances
    to the codes of a vector quantizer, is another one once they are rounded. What the layer gives
    then looks right, and is the wrong code. So is the bucket of a number that was infinite before
    it was made whole. The doctor compares what layers choose, and the whole numbers that they make,
    in both precisions: it is a fault where a fifth are others (of whole numbers, by more than 16
    roundings), and rounding the inputs explains less than a third of these.

    Example:
        def nearest(x):  # |x|^2 - 2 x e + |e|^2, of values around 8
            codes = keras.ops.convert_to_tensor(np.linspace(8, 8.2, 8)[:, None], x.dtype)
            distances = x * x - 2 * x @ codes.T + keras.ops.sum(codes**2, axis=-1)
            return keras.ops.take(codes, keras.ops.argmin(distances, axis=-1), axis=0)

    Mend:
        Give the layer `dtype="float32"`, which `fix` does, or cast to float32 before the scores.

    References:
        Seen on Keras 3.15, with the VQ-VAE of https://keras.io/examples/generative/vq_vae/.
    """
    for fault in faults(subject, "forward", "chooses"):
        text = (
            f"{percent(fault.error)} of what it chooses as largest or smallest, or makes whole "
            f"numbers of, are others in {fault.dtype}; rounding its inputs explains "
            f"{percent(fault.explained)}"
        )
        yield finding("other_choice", subject, fault, text)


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
    for fault in faults(subject, "forward", "raises"):
        error = (subject.probe.error or "").strip().split("\n")[0][:200]
        text = f"Raises an error in {fault.dtype} and none in float32: {error}"
        yield finding("fails_in_half", subject, fault, text)
