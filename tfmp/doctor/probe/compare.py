"""Whether half's numbers are those of float32 as far as rounding explains."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfmp.doctor.probe.values import Kind

# Times the effect of rounding the inputs (or of rounding the result) that a layer's own roundings
# may come to: it rounds after each of its operations.
STEPS = 16
# A smaller difference, by the size of the result, is no harm whatever it comes from; unless it is a
# larger one by how much the numbers of the result differ, of a survival near 1, say.
HARMLESS, HARMLESS_SPREAD = 0.03, 0.3
# A larger one is harm even where rounding the inputs explains it: a position of 5001 in float16. It
# is the rounding 200 times over in float16 and 80 times in bfloat16, whose own is already 0.4 %.
HARM = {"float16": 0.1, "bfloat16": 0.3}
# By how far what rounding moves exceeds a result that is nothing but the rounding of float32.
NOUGHT = 1000

# Half of the distance from 1 to the next number, and the smallest number above zero.
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
QUANTUM = {"float16": 2.0**-24, "bfloat16": 2.0**-133}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How half's numbers differ: see `Fault`."""

    kind: Kind
    error: float | None
    explained: float | None


def array(tensor) -> np.ndarray:
    """A tensor as a flat float32 array."""
    return tf.reshape(tf.cast(tensor, "float32"), [-1]).numpy()


def finite(tensor) -> bool:
    """Whether all of a tensor is finite."""
    return bool(tf.reduce_all(tf.math.is_finite(tensor)))


def moved(x, rng, by) -> tf.Tensor:
    """A float tensor with each number brought towards zero by a random part of up to `by`."""
    if not by:
        return x
    part = 1 - by * rng.random(x.shape, np.float32)
    return tf.cast(tf.cast(x, "float32") * part, x.dtype)


def largest(tensors) -> float:
    """Largest finite magnitude of some tensors; 0 where there is none."""
    found = 0.0
    for tensor in tensors:
        values = np.abs(array(tensor))
        found = max(found, float(np.max(values, initial=0.0, where=np.isfinite(values))))
    return found


def compare(half, full, move, dtype: str, forward: bool) -> Difference | None:
    """Compares what half gave with float32.

    Args:
        half: What half gave.
        full: What float32 gave for the same inputs.
        move: Function that gives what float32 gives for inputs moved by so many of half's
            roundings; called only where half is far enough from float32 to ask.
        dtype: The half dtype.
        forward: Whether they are outputs, else gradients. A large difference of outputs counts even
            if rounding the inputs explains it.

    Returns:
        The difference; None where there is none beyond rounding.
    """
    half, full = array(half), array(full)
    if half.shape != full.shape:
        return None
    good = np.isfinite(full)
    bad = good & ~np.isfinite(half)
    if bad.any():
        return Difference("overflow" if np.isinf(half[bad]).any() else "nan", None, None)
    apart = np.subtract(half, full, out=np.zeros_like(full), where=good)
    error, size = _size(apart), _size(np.where(good, full, 0))
    if forward and error <= STEPS * EPSILON[dtype] * size:
        return None  # rounding the result explains it, so there is nothing to ask
    if error <= HARMLESS * size and (not forward or error <= HARMLESS_SPREAD * _spread(full, good)):
        return None

    def off(roundings):
        shifted = array(move(roundings))
        both = good & np.isfinite(shifted)
        return _size(np.subtract(shifted, full, out=np.zeros_like(full), where=both))

    rounding = off(1) + EPSILON[dtype] * size
    lost = good & (half == 0) & (full != 0)
    harm = HARM[dtype] * size
    flushed = rounding <= harm and _size(apart[lost]) > 0.7 * error
    # Near the smallest numbers of float16 all rounding is coarse.
    coarse = QUANTUM[dtype] / 2 * np.sqrt(np.count_nonzero(full))
    explained = error <= STEPS * (rounding + coarse)
    if forward:
        # A result far below the rounding of what it is made of is nought in float32, too.
        wrong = not explained or (error > harm and rounding < NOUGHT * size)
    else:
        # Gradients change by jumps, where a ReLU opens or a maximum is another's: how many jump is
        # a matter of luck.
        explained = explained or error <= 2 * off(STEPS)
        # Nor is what rounding drowns, such as the gradient of a bias before a normalization.
        wrong = rounding <= harm and (not explained or (flushed and error > harm))
    if not wrong:
        return None
    size = max(size, np.finfo(np.float64).tiny)
    return Difference("flush" if flushed else "departure", error / size, rounding / size)


def _spread(values, good) -> float:
    """Root of the sum of squares of good values around their mean."""
    mean = np.mean(values, dtype=np.float64, where=good) if good.any() else 0.0
    return _size(np.where(good, values - np.float32(mean), 0))


def _size(values) -> float:
    """Root of the sum of squares."""
    with np.errstate(over="ignore", under="ignore"):
        quick = float(np.dot(values, values))
    if 1e-20 < quick < np.inf:
        return quick**0.5
    return float(np.linalg.norm(values.astype(np.float64)))
