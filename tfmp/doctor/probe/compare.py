"""Whether half's numbers are those of float32 as far as rounding explains."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfmp.doctor.probe.values import Kind

# Times the effect of rounding the inputs (or of rounding the result) that a layer's own roundings
# may come to: it rounds after each of its operations.
STEPS = 16
# A smaller difference, by the size of the result, is no harm whatever it comes from.
HARMLESS = 0.03
# A larger one is harm even where rounding the inputs explains it: a position of 5001 in float16.
HARM = 0.3

# The smallest number above zero.
QUANTUM = {"float16": 2.0**-24, "bfloat16": 2.0**-133}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How half's numbers differ: see `Fault`."""

    kind: Kind
    error: float | None
    explained: float | None


def epsilon(dtype: str) -> float:
    """Half of the distance from 1 to the next number of a dtype."""
    return float(np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps) / 2 if dtype == "float16" else 2.0**-8


def array(tensor) -> np.ndarray:
    """A tensor as a flat float32 array."""
    return tf.reshape(tf.cast(tensor, "float32"), [-1]).numpy()


def finite(tensor) -> bool:
    """Whether all of a tensor is finite."""
    return bool(tf.reduce_all(tf.math.is_finite(tensor)))


def largest(tensors) -> float:
    """Largest finite magnitude of some tensors; 0 where there is none."""
    found = 0.0
    for tensor in tensors:
        values = np.abs(array(tensor))
        found = max(found, float(np.max(values, initial=0.0, where=np.isfinite(values))))
    return found


def compare(half, full, moved, dtype: str, explained_harms: bool) -> Difference | None:
    """Compares what half gave with float32.

    Args:
        half: What half gave.
        full: What float32 gave for the same inputs.
        moved: What float32 gives for inputs moved by half's rounding.
        dtype: The half dtype.
        explained_harms: Whether a large difference counts even if rounding the inputs explains it.

    Returns:
        The difference; None where there is none beyond rounding.
    """
    half, full, moved = array(half), array(full), array(moved)
    if half.shape != full.shape:
        return None
    good = np.isfinite(full)
    bad = good & ~np.isfinite(half)
    if bad.any():
        return Difference("overflow" if np.isinf(half[bad]).any() else "nan", None, None)
    error = _size(half - full, good)
    size = _size(full, good)
    if error <= HARMLESS * size or error == 0:
        return None
    rounding = _size(moved - full, good & np.isfinite(moved)) + epsilon(dtype) * size
    zero = good & (half == 0) & (full != 0)
    flushed = _size(half - full, zero) > 0.7 * error
    # Near the smallest numbers of float16 all rounding is coarse; what is left of them still counts.
    coarse = QUANTUM[dtype] / 2 * np.sqrt(np.count_nonzero(full))
    harms = error > HARM * size and (explained_harms or flushed)
    # What rounding drowns altogether, as the gradient of a bias before a normalization, is nought.
    nought = rounding > HARM * size
    if (error <= STEPS * (rounding + coarse) or nought) and not (harms and not (nought and flushed)):
        return None
    size = max(size, np.finfo(np.float64).tiny)
    return Difference("flush" if flushed else "departure", error / size, rounding / size)


def _size(values, where) -> float:
    """Root of the sum of squares over some of the values."""
    chosen = np.where(where, values, 0).astype(np.float64)
    return float(np.sqrt(np.sum(chosen * chosen)))
