"""State that moves by small steps, and stands still in half."""

from collections.abc import Iterator

from tfmp.doctor import flow, linear
from tfmp.doctor.finding import Finding, Severity
from tfmp.doctor.subject import Subject

# By how much of what it follows a state may stay behind it, and do no harm.
LAG = 0.03
# Half of the distance from a number to the next, by that number, at its least.
HALF_STEP = {"float16": 2.0**-12, "bfloat16": 2.0**-9}
LOOPS = ("While", "StatelessWhile")


def stalled_state(subject: Subject) -> Iterator[Finding]:
    """A running mean in half stops on its way, and a count stands still.

    Running statistics, a teacher's weights that follow a student's, and cells that average over
    time move by a small part of a difference. In float16 a step below 2^-12 of the value is rounded
    away: at a momentum of 0.999 a mean stays 24 % from what it follows, at 0.9999 it never moves. A
    count stands still at 2048, and a sum when what is added falls below 2^-12 of it. (In bfloat16:
    2^-9, and 256.) The doctor reads the factors of the update in a layer, in a loop such as a
    recurrent layer's, and in a `train_step`.

    Example:
        class Center(keras.layers.Layer):
            def build(self, shape):
                self.mean = self.add_weight(shape=shape[-1:], dtype="float16", trainable=False)

            def call(self, inputs):
                mean = keras.ops.cast(keras.ops.mean(inputs, axis=0), "float16")
                self.mean.assign(self.mean + 0.001 * (mean - self.mean))
                return inputs - keras.ops.cast(self.mean, inputs.dtype)

    Mend:
        Keep the state in float32, `add_weight(..., dtype="float32", autocast=False)`, and update it
        there; give a recurrent layer whose cell averages over many steps `dtype="float32"`.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.1.
        Seen on Keras 3.15.
    """
    held: dict[tuple, list] = {}
    for looked in subject.everywhere:
        for operation in looked.trace.operations:
            for layer, dtype, update in _updates(looked, operation):
                severity, why = verdict(update, dtype)
                if severity:
                    held.setdefault((severity, dtype, why), []).append(layer)
    for (severity, dtype, why), layers in held.items():
        for name in _named(layers):
            yield Finding(
                "stalled_state",
                severity,
                name,
                f"A state in {dtype} {why}. Keep it, and its update, in float32.",
                {"dtype": dtype, "resolution": HALF_STEP[dtype], "layers": sorted(set(layers))[:20]}
                if all(layers)
                else {"dtype": dtype, "resolution": HALF_STEP[dtype]},
                tuple(x for path in dict.fromkeys(layers) for x in subject.float32(path)),
            )


def verdict(update, dtype) -> tuple[Severity | None, str]:
    """How bad an update of a state in half is, and what it does; (None, ""): nothing.

    Args:
        update: A `tfmp.doctor.linear.Update`.
        dtype: "float16" or "bfloat16".
    """
    limit = HALF_STEP[dtype] / LAG
    if 1e-12 < update.decay < limit:
        lag = HALF_STEP[dtype] / update.decay
        behind = f"{lag:.0%} from it" if lag < 1 else "before it begins"
        return "error", (
            f"goes {update.decay:.3g} of the way to what it follows in each step: it stops {behind}"
        )
    if abs(update.decay) > 1e-12:
        return None, ""
    if update.constant:
        still = abs(update.constant) / HALF_STEP[dtype] / 2
        return "error", f"counts by {update.constant:g}, and stands still at {still:g}"
    if update.step is not None and update.step < limit:
        return "warning", (
            f"has steps of {update.step:.3g} times something added to it: those below "
            f"{HALF_STEP[dtype]:.2g} of it are lost"
        )
    return None, ""


def _updates(subject, operation):
    """(path, dtype, update) of the states in half that an operation writes, or carries on."""
    if operation.type in linear.ASSIGNS:
        value = operation.inputs[1]
        found = linear.written(subject.ranges, operation) if flow.is_half(value) else None
        if found:
            path = subject.path(operation) or _holder(subject, flow.outermost(operation.inputs[0]))
            yield path, value.dtype.name, found
    elif operation.type in LOOPS:
        yield from _carried(subject, operation)


def _carried(subject, operation):
    """Of what a loop hands from one round to the next."""
    body = flow.called_graph(operation, "body")
    parts = zip(body.inputs, body.outputs, strict=False) if body else ()
    for before, after in parts:
        if not flow.is_half(before) or before is after:
            continue
        found = linear.update(subject.ranges, after, lambda x, before=before: x is before)
        # What is added up in a loop, of as many rounds as there are, a batch tells.
        if found and (found.decay > 1e-12 or (found.step or 1) < 1):
            made = next(
                (
                    x
                    for x in flow.sources(after, linear.IN_PLACE)
                    if x.op.type not in linear.IN_PLACE
                ),
                after,
            )
            yield subject.path(made.op) or subject.path(operation), before.dtype.name, found


def _holder(subject, handle) -> str | None:
    """The path of the layer that holds a variable."""
    for part in subject.parts:
        layer = part.layer
        for v in [*layer._trainable_variables, *layer._non_trainable_variables]:
            if getattr(v.value, "handle", None) is handle:
                return part.path
    return None


def _named(layers) -> list[str | None]:
    """The layers; what holds them where they are several of one model."""
    paths = list(dict.fromkeys(layers))
    if len(paths) == 1 or None in paths:
        return paths
    tops = {path.partition("/")[0] for path in paths}
    return [tops.pop()] if len(tops) == 1 else paths
