"""Raw values, and the layers that take them."""

import json
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer import (
    BaseImagePreprocessingLayer,  # it has no public name
)

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject

# Steps between neighbors, of values whose deviation is about 1, that learning puts up with.
TOLERATED = 0.1


def half_preprocessing(subject: Subject) -> Iterator[Finding]:
    """Raw values lose their digits before they are normalized.

    A layer casts its input to its compute dtype first. Pixels of 16 bits (up to 65535), years,
    prices or pressures in Pascal then are rounded to 11 bits, or become infinite above 65504, and
    normalization can't bring back what is lost. Boundaries of `Discretization` fall together.
    Pixels of 8 bits survive.

    Example:
        layer = keras.layers.Rescaling(1 / 65535, dtype="mixed_float16")
        layer(np.array([[65535.0]]))  # inf

        years = keras.layers.Normalization(mean=2030.0, variance=25.0, dtype="mixed_float16")
        years(np.array([[2051.0]]))  # 4.4 instead of 4.2

    Mend:
        `dtype="float32"` for whatever takes raw values. `fix` sets it.

    References:
        IEEE 754-2019, binary16: 11 significant bits, largest number 65504.
    """
    for part in subject.half_parts:
        layer = part.layer
        dtype = tf.as_dtype(layer.compute_dtype)
        if type(layer) is keras.layers.Rescaling:
            found = _rescaling(layer, dtype)
        elif type(layer) is keras.layers.Normalization:
            found = _normalization(layer, dtype)
        elif type(layer) is keras.layers.Discretization:
            found = _discretization(layer, dtype)
        else:
            continue
        if found:
            why, evidence = found
            yield Finding(
                "half_preprocessing",
                "error",
                part.path,
                f'{why} Give the layer dtype="float32".',
                evidence | {"dtype": dtype.name},
                (part.path,),
            )


def half_augmentation(subject: Subject) -> Iterator[Finding]:
    """Augmentation in half rounds pixels, and draws coarse random numbers.

    Keras' image layers compute in the global policy's dtype unless they are told otherwise. Pixels
    of 0-255 are rounded to an eighth, positions above 2048 to whole numbers, and a random number in
    float16 is one of some thousand: of one seed, contrast comes out different by several of 255.
    Flips and crops only move pixels, and are exact.

    Example:
        images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3))
        full, half = (
            np.array(keras.layers.RandomContrast(0.5, seed=1, dtype=dtype)(images, training=True))
            for dtype in ("float32", "mixed_float16")
        )
        np.abs(full - half).max()  # several of 255

    Mend:
        `dtype="float32"` for the layer, or augmentation in the data pipeline. `fix` sets it.

    References:
        Seen on Keras 3.15.
    """
    for part in subject.half_parts:
        layer = part.layer
        if not isinstance(layer, BaseImagePreprocessingLayer) or part.hidden:
            continue
        if not type(layer).__module__.startswith("keras.") or _moves_only(layer):
            continue
        if type(layer) in (keras.layers.Rescaling, keras.layers.Resizing):
            continue
        yield Finding(
            "half_augmentation",
            "warning",
            part.path,
            f"{type(layer).__name__} computes pixels in {layer.compute_dtype}: values, sums over "
            'the image and random numbers are rounded. Give it dtype="float32".',
            {"dtype": layer.compute_dtype},
            (part.path,),
        )


def _rescaling(layer, dtype):
    scale = np.abs(np.atleast_1d(np.asarray(layer.scale, "float64"))).min()
    offset = np.abs(np.atleast_1d(np.asarray(layer.offset, "float64"))).max()
    if not scale:
        return None
    # Values of about 1 behind it were as large as this before it.
    raw = float(max(1.0, offset) / scale)
    evidence = {"scale": float(scale), "raw": raw}
    if raw >= flow.largest(dtype):
        return (
            f"Rescaling by {scale:.3g} is for values up to {raw:.6g}, and {dtype.name} holds "
            f"nothing above {flow.largest(dtype):g}.",
            evidence,
        )
    step = _step(raw, dtype) * float(scale)
    if step > TOLERATED:
        return (
            f"Values of about {raw:g} are rounded in {dtype.name} before they are rescaled: to "
            f"steps of {step:.2g} behind it.",
            evidence | {"step": step},
        )
    return None


def _normalization(layer, dtype):
    mean, variance = (
        getattr(layer, name, None) if getattr(layer, name, None) is not None else other
        for name, other in (
            ("input_mean", getattr(layer, "adapt_mean", None)),
            ("input_variance", getattr(layer, "adapt_variance", None)),
        )
    )
    if mean is None or variance is None:
        return None
    mean = np.abs(np.asarray(keras.ops.convert_to_numpy(mean), "float64")).ravel()
    deviation = np.sqrt(np.asarray(keras.ops.convert_to_numpy(variance), "float64")).ravel()
    mean, deviation = np.broadcast_arrays(mean, deviation)
    rows = mean + 2 * deviation
    worst = int(np.argmax(rows / np.maximum(deviation, 1e-30) * (deviation > 0) + rows / 1e6))
    step = _step(float(rows[worst]), dtype)
    if rows.max() >= flow.largest(dtype) or (deviation**2).max() >= flow.largest(dtype):
        worst = int(rows.argmax())
        why = "are beyond its largest number"
    elif deviation[worst] and step > TOLERATED * deviation[worst]:
        why = f"are rounded to steps of {step:g}"
    else:
        return None
    return (
        f"Values of mean {mean[worst]:g} and deviation {deviation[worst]:g} {why} in {dtype.name} "
        "before they are normalized.",
        {"mean": float(mean[worst]), "deviation": float(deviation[worst]), "step": step},
    )


def _step(value: float, dtype) -> float:
    """The distance between neighbors in a float dtype at a value."""
    bits = int(math.log2(flow.integers(dtype)))
    return 2.0 ** (math.floor(math.log2(max(abs(value), 2.0**-14))) - bits + 1)


def _discretization(layer, dtype):
    boundaries = np.asarray(layer.bin_boundaries or [], "float64")
    rounded = boundaries.astype(dtype.as_numpy_dtype).astype("float64")
    if len(set(rounded)) == len(boundaries) and np.isfinite(rounded).all():
        return None
    return (
        f"Boundaries of its bins fall together in {dtype.name}.",
        {"boundaries": len(boundaries), "distinct": len(set(rounded))},
    )


def _moves_only(layer) -> bool:
    """Whether a layer gives no pixel but those it got: probed once for each configuration."""
    config = layer.get_config() | {"name": None}
    key = type(layer), json.dumps(config, sort_keys=True, default=str)
    if key not in _MOVING:
        _MOVING[key] = _probed(type(layer), config)
    return _MOVING[key]


_MOVING: dict[tuple, bool] = {}


def _probed(cls, config) -> bool:
    images = np.random.default_rng(0).integers(1, 256, (8, 16, 16, 3)).astype("float32")
    try:
        layer = cls.from_config(config)
        # Several times, since some draw what they do: RandAugment has parts that only move, too.
        drawn = [layer(images, training=True) for _ in range(4)]
    except Exception:  # sizes that don't fit, say
        return False
    pixels = np.asarray(keras.ops.convert_to_numpy(keras.ops.stack(drawn)), "float32")
    return bool(np.isin(pixels, np.append(images, [0.0])).all())
