"""The vectors of replicas: what is put together comes back, and nothing is copied twice."""

import numpy as np
import pytest
import tensorflow as tf

from tfmp.training import vector

OPERANDS = 96  # of a kernel, for a GPU


def tensors(count):
    """Of different shapes and dtypes, and some of equal sizes."""
    generator = np.random.default_rng(0)
    shapes = [tuple(generator.integers(1, 4, generator.integers(0, 4))) for _ in range(count)]
    dtypes = generator.choice(["float32", "float64"], count)
    return [tf.cast(generator.random(s), d) for s, d in zip(shapes, dtypes, strict=True)]


def flat(parts):
    return [tf.reshape(tf.cast(x, tf.float32), [-1]) for x in parts]


@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_parts_come_back_as_sums(monkeypatch, count, jit_compile, in_one):
    monkeypatch.setattr(vector, "SIZE", 20)
    monkeypatch.setattr(vector, "PARTS", 7)
    like, rest = tensors(count), [tf.constant([7.0]), tf.constant([8.0, 9.0])]
    numbers = []

    def double(x, number):
        numbers.append(number)
        return 2 * x

    @tf.function(jit_compile=jit_compile, autograph=False)
    def back(parts):
        joined = vector.join(flat(parts), rest, in_one)
        sums = vector.add_up(joined, double)
        return vector.split(sums, parts), sums[-1][-3:]

    found, tail = back(like)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == 1 if in_one or count < 4 else len(numbers) >= 40 / 7
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in like]
    for a, b in zip(found, like, strict=True):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-6)
    np.testing.assert_array_equal(tail, [14, 16, 18])


def test_the_last_parts_come_first(monkeypatch):
    monkeypatch.setattr(vector, "SIZE", 20)
    sizes = [30, 1, 19, 2, 20, 3]
    parts = [tf.fill([size], float(size)) for size in sizes]
    joined = vector.join(parts, [tf.zeros([1])], in_one=False)
    groups = [[3, 20], [2, 19], [1, 30, 0]]
    assert [list(dict.fromkeys(x.numpy())) for x in joined] == groups


def test_no_concatenation_has_more_parts_than_a_kernel_takes():
    sizes = [2, 900, 3, 700] * 100 + [vector.SIZE]
    counts = []

    def step(x):
        joined = vector.join(x, [tf.ones([1])] * 3, in_one=False)
        counts.extend(len(x.op.inputs) - 1 for x in joined)  # (one is the axis)
        return joined

    step = tf.function(step, autograph=False)
    step.get_concrete_function([tf.ones([size]) for size in sizes])
    assert len(counts) == 1 + -(-400 // vector.PARTS)
    assert max(counts) <= OPERANDS


@pytest.mark.parametrize("jit_compile", [False, True])
def test_no_sum_comes_before_the_former(monkeypatch, jit_compile):
    """XLA could compute them in any order, and in another one for each replica."""
    monkeypatch.setattr(vector, "SIZE", 20)
    sums = []

    def add_up(x, number):
        if number:
            before = [*x.op.control_inputs, *(i.op for i in x.op.inputs)]
            assert x.op.type == ("XlaOptimizationBarrier" if jit_compile else "Identity")
            assert sums[-1].op in before
        sums.append(tf.cumsum(x))
        return sums[-1]

    def step(x):
        return vector.add_up(vector.join([x, x, x], [tf.ones([1])], in_one=False), add_up)

    tf.function(step, jit_compile=jit_compile, autograph=False).get_concrete_function(tf.ones([20]))
    assert len(sums) == 3
