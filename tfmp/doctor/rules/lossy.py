"""Layers that lose what half precision could hold, found by trying them."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfmp.doctor import flow
from tfmp.doctor.finding import Finding
from tfmp.doctor.probe import compare
from tfmp.doctor.ranges import of
from tfmp.doctor.subject import Subject
from tfmp.doctor.trace import is_graph
from tfmp.policies.choice import HALF

# Values that are ordinary for activations, and those that are rarer.
ORDINARY = (1.0, 16.0, 1e-2)
LARGE = (40.0, 400.0)
# What all of a layer's values are seldom at once.
TINY = (1e-4,)
# Behind these values are about 1.
NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
# Sizes of axes that are open: of a batch, of sequences, of images.
BATCH, LENGTH, SIDE = 2, 512, 32
PRODUCTS = {"BatchMatMulV2", "BatchMatMul", "MatMul", "Einsum", "Conv2D", "Conv3D", "Conv1D"}
# In these half precision sums up or raises what it takes; other operations give no more than they
# got, or are covered by the rules of constants.
REDUCTIONS = {
    "Sum", "Mean", "Prod", "Cumsum", "Cumprod", "L2Loss", "Square", "SquaredDifference", "Pow",
    "Exp", "Expm1", "Cumlogsumexp", "EuclideanNorm", "AvgPool", "AvgPool3D", "Log", "Log1p",
    "Rsqrt", "Reciprocal",
}  # fmt: skip
LARGEST_PROBE = 2**20


def lossy_layer(subject: Subject) -> Iterator[Finding]:
    """A layer overflows or loses digits inside, though its input and output fit into half.

    A norm squares its input: above 256 the square is beyond float16, below 2e-4 it is zero.
    log(sum(exp(x))) is infinite from x = 11.1 on. Keras computes some of its layers in float32
    inside and others not, and changes it from release to release; so each layer that squares, sums
    or raises in half is tried in both precisions, on values of 1e-4 to 400. A layer of one's own
    that loses above 16 only is information: that depends on what it is given, which a batch tells.

    Example:
        class RMSNorm(keras.layers.Layer):
            def call(self, x):
                return x / keras.ops.sqrt(keras.ops.mean(x * x, -1, keepdims=True) + 1e-3)

        RMSNorm(dtype="mixed_float16")(np.full((1, 8), 300.0))  # 0 instead of 1

    Mend:
        Compute the layer in float32, which `fix` does, or cast its input to float32 and its output
        back inside of `call`.

    References:
        https://github.com/keras-team/keras/pull/23093 (`keras.ops.normalize`)
        https://github.com/apache/mxnet/issues/11938
    """
    tried: dict[tuple, tuple | None] = {}
    found: dict[str, Finding] = {}
    holders: set[int] = set()
    # Callers come first, and a layer is not to blame for what one does that it calls.
    for call in reversed(subject.trace.calls):
        part = subject.part(call.called)
        if part is None or id(call) in holders or not _candidate(call):
            continue
        key = _key(call)
        if key not in tried:
            tried[key] = _lost(subject, call)
        lost = tried[key]
        if lost:
            found[part.path] = _finding(part, call, *lost)
            holders |= {id(x) for x in _callers(call)}
    yield from reversed(found.values())


def _finding(part, call, magnitude, error, what):
    # At large values any product of two activations overflows, as in attention; and of a layer of
    # the user's own nobody knows what it is given. With a batch, that is what probing is for.
    known = type(call.called).__module__.startswith("keras.")
    product = not any(map(_reduces, call.operations))
    rare = magnitude in TINY or (magnitude in LARGE and (product or not known))
    return Finding(
        "lossy_layer",
        "info" if rare else "warning",
        part.path,
        f"In {call.called.compute_dtype} its output is {what} for inputs of about "
        f"{magnitude:g}, where float32's is right and would fit: a sum, square or power "
        "inside is out of range or rounded. Give it dtype='float32', or compute it in float32 "
        "inside.",
        {"magnitude": magnitude, "error": error if math.isfinite(error) else None},
        (part.path,),
    )


def _callers(call):
    while call.parent is not None:
        call = call.parent
        yield call


def _candidate(call) -> bool:
    layer = call.called
    if not isinstance(layer, keras.Layer) or is_graph(layer) or not call.inputs:
        return False
    if layer.compute_dtype not in HALF:
        return False
    if not call.inputs[0].dtype.is_floating or any(x.shape.rank is None for x in call.inputs):
        return False
    return any(map(_reduces, call.operations)) or any(map(_multiplies, call.operations))


def _reduces(operation) -> bool:
    """Whether it squares, sums or raises in half."""
    if not operation.outputs or not flow.is_half(operation.outputs[0]):
        return False
    square = operation.type == "Mul" and operation.inputs[0] is operation.inputs[1]
    return square or operation.type in REDUCTIONS


def _multiplies(operation) -> bool:
    """Whether it is a matrix product of two activations in half."""
    if operation.type not in PRODUCTS or not flow.is_half(operation.outputs[0]):
        return False
    return not any(
        x.op.type == "ReadVariableOp"
        for given in operation.inputs
        for x in flow.sources(given, flow.SAME)
    )


def _key(call):
    """What is the same for layers that need to be tried once only."""
    shapes = tuple(str(x.shape) for x in call.inputs)
    try:
        config = call.called.get_config() | {"name": None}
    except NotImplementedError:
        return id(call.called), shapes
    return type(call.called), json.dumps(config, sort_keys=True, default=str), shapes


def _lost(subject, call):
    """(magnitude of inputs, error, what comes out) of the first loss; None: nothing is lost."""
    shapes = [_shape(x) for x in call.inputs]
    if sum(np.prod(shape) for shape in shapes) > LARGEST_PROBE:
        return None
    ranges = [of(subject.ranges, x) for x in call.inputs]
    inside = [x for x in subject.trace.calls if x is call or call in _callers(x)]
    drawn = any("Random" in operation.type for x in inside for operation in x.operations)
    normalized = [_normalization(subject, x) for x in call.inputs]
    largest = 1.0 if normalized[0] else ranges[0].largest
    magnitudes = [x for x in ORDINARY + LARGE + TINY if x <= largest]
    for magnitude, signed in itertools.product(magnitudes, (True, False)):
        inputs = [
            _behind(layer, _values(shape, magnitude, signed and r.low < 0, seed))
            if x.dtype.is_floating
            else np.ones(shape, x.dtype.as_numpy_dtype)
            for seed, (x, shape, r, layer) in enumerate(
                zip(call.inputs, shapes, ranges, normalized, strict=True)
            )
        ]
        found = _compared(call, inputs, drawn)
        if found:
            return magnitude, *found
    return None


def _shape(tensor):
    first, *rest = tensor.shape.as_list() or [None]
    other = LENGTH if len(rest) < 3 else SIDE
    filled = [BATCH if first is None else first, *(other if n is None else n for n in rest)]
    return filled[: tensor.shape.rank]


def _normalization(subject, tensor) -> keras.Layer | None:
    """The layer that has normalized a tensor, if one has."""
    for x in flow.sources(tensor, flow.SAME):
        call = subject.trace.owners.get(id(x.op))
        if x.op.type not in flow.SAME and call is not None:
            return call.called if isinstance(call.called, NORMALIZATIONS) else None
    return None


def _behind(layer, values):
    """Values as a normalization gives them: those of unit length become the smaller, the more."""
    if not isinstance(layer, keras.layers.UnitNormalization):
        return values
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return values / np.sqrt(np.sum(values**2, tuple(axes), keepdims=True))


def _values(shape, magnitude, signed, seed):
    """Values of about a magnitude, of both signs or positive, that float16 holds exactly."""
    drawn = np.random.default_rng(seed).uniform(0.75, 1.25, shape) * magnitude
    signs = np.where(np.random.default_rng(seed + 1).random(shape) < 0.5, -1.0, 1.0)
    return (drawn * (signs if signed else 1.0)).astype("float16").astype("float32")


def _compared(call, inputs, drawn):
    """(error, what comes out) where half and float32 differ by more than rounding.

    Args:
        call: The call of a layer.
        inputs: Arrays.
        drawn: Whether the layer draws random numbers, which differ from dtype to dtype.
    """
    layer = call.called
    try:
        half = _run(layer, call, inputs, None)
        full = _run(layer, call, inputs, keras.DTypePolicy("float32"))
    except Exception:  # a layer that can't be called alone, or not in float32
        return None
    limit = flow.largest(tf.as_dtype(layer.compute_dtype))
    for got, expected in zip(half, full, strict=True):
        scale = np.abs(expected).max(initial=0)
        if not np.isfinite(expected).all() or not 2.0**-14 <= scale <= limit / 2:
            continue
        if not np.isfinite(got).all():
            return float("inf"), "infinite or NaN"
        error = float(np.abs(got - expected).max() / scale)
        if error > 0.25 and not drawn and error > 4 * _shift(call, inputs, expected) / scale:
            zero = not np.abs(got).max()
            return error, "zero" if zero else f"off by {error:.0%}"
    return None


def _shift(call, inputs, expected) -> float:
    """By how much float32 gives something else for inputs that are moved by half's rounding.

    It is much where a softmax of large scores, or the nearest of two codes, is decided by a last
    digit: that is no fault of the layer's.
    """
    rng, by = np.random.default_rng(2), 2 * compare.EPSILON[call.called.compute_dtype]
    moved = [
        compare.moved(tf.constant(x), rng, by) if np.issubdtype(x.dtype, np.floating) else x
        for x in inputs
    ]
    results = _run(call.called, call, moved, keras.DTypePolicy("float32"))
    shifts = [np.abs(x - expected).max() for x in results if x.shape == expected.shape]
    return max(shifts, default=0.0)


def _run(layer, call, inputs, policy):
    """The outputs and losses of a layer for inputs, under another policy if one is given."""
    given = iter([tf.constant(x) for x in inputs])
    positional, named = keras.tree.map_structure(
        lambda x: next(given) if tf.is_tensor(x) else x, call.arguments
    )
    with _as_it_was(layer):
        for x in layer._flatten_layers():
            if policy is not None and x.compute_dtype in HALF:
                x._dtype_policy = policy
        outputs = layer(*positional, **(named | _not_training(layer)))
        losses = [x for y in layer._flatten_layers() for x in y._losses]
        found = [*keras.tree.flatten(outputs), *losses]
        return [np.asarray(tf.cast(x, "float32")) for x in found if x.dtype.is_floating]


@contextlib.contextmanager
def _as_it_was(layer):
    """Restores policies, state (of random generators, too) and losses."""
    layers = layer._flatten_layers()
    policies = [(x, x._dtype_policy) for x in layers]
    state = [(v, tf.convert_to_tensor(v)) for v in layer.non_trainable_variables]
    try:
        yield
    finally:
        for x, policy in policies:
            x._dtype_policy = policy
            x._losses.clear()
            x._loss_ids.clear()
        for variable, value in state:
            variable.assign(value)


def _not_training(layer):
    return {"training": False} if layer._call_has_training_arg else {}
