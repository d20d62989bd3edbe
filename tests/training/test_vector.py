"""The vector of replicas: what is put together comes back, and nothing large is copied twice."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tfmp.training import vector

OPERANDS = 128  # of a concatenation that XLA leaves whole for a GPU


def tensors(count):
    """Of different shapes and dtypes, and some of equal sizes."""
    generator = np.random.default_rng(0)
    shapes = [tuple(generator.integers(1, 4, generator.integers(0, 4))) for _ in range(count)]
    dtypes = generator.choice(["float32", "float64"], count)
    return [tf.cast(generator.random(s), d) for s, d in zip(shapes, dtypes, strict=True)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("count", [0, 3, vector.ALONE, vector.ALONE + 9, 3 * vector.ALONE])
def test_parts_come_back(count, jit_compile):
    like, rest = tensors(count), [tf.constant([7.0, 8.0])]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def back(parts):
        flat = [tf.reshape(tf.cast(x, tf.float32), [-1]) for x in parts]
        joined = vector.join(flat, rest, lambda x: 2 * x)
        return vector.split(joined[:-2] / 2, parts), joined[-2:]

    found, tail = back(like)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in like]
    for a, b in zip(found, like, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(tail, rest[0])


def test_xla_cuts_no_concatenation_in_two():
    parts = [tf.ones([size]) for size in (2, 900, 3, 700) * vector.ALONE][: 2 * vector.ALONE]
    join = tf.function(
        lambda x, weight: vector.join(x, [tf.ones([1])], lambda x: x * weight),
        jit_compile=True,
        autograph=False,
    )
    text = join.experimental_get_compiler_ir(parts, 2.0)(stage="optimized_hlo")
    made = [line for line in text.splitlines() if " concatenate(" in line]
    sizes = [int(re.search(r" = f32\[(\d+)\]", line)[1]) for line in made]
    large, small = 80_000, 250
    assert sorted(sizes) == [small, 1 + small, large, 1 + small + large]
    for line in made:
        operands = line.split(" concatenate(")[1].split(")")[0].split(", ")
        assert len(operands) <= OPERANDS
