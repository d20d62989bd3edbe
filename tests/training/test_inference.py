"""How predictions are timed, and what is said where they can't be."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tfmp import power
from tfmp.training import inference

IMAGES = np.zeros((64, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(64, [1, 64, 16, 4]), (256, [1, 256, 64, 16, 4]), (1, [1]), (2, [1, 2]), (7, [1, 7])],
)
def test_batch_sizes(largest, sizes):
    assert inference.batch_sizes(largest) == sizes


@pytest.fixture
def session():
    """A session of one CPU, with a card's power."""

    class Sampler(power.Sampler):
        def mean_watts(self, spans):
            assert all(begin < end for begin, end in spans)
            return 50.0

    return types.SimpleNamespace(
        strategy=tf.distribute.get_strategy(),
        device=types.SimpleNamespace(kind="cpu"),
        power=lambda gpus: Sampler([]),
    )


@pytest.mark.parametrize(
    ("kind", "seconds", "calls", "windows", "before"),
    [
        ("gpu", 0.125, 4, 5, 3 + 2 * 4),  # 3 calls to know their time, 1 s of warm-up
        ("cpu", 0.03, 2, 5, 3),
        ("cpu", 4.0, 1, 3, 3),  # no further window behind 10 s
        ("gpu", 20.0, 1, 1, 3 + 1),
    ],
)
def test_windows(monkeypatch, kind, seconds, calls, windows, before):
    """With a device that takes as long for each call as we say."""
    clock = types.SimpleNamespace(now=0.0, calls=0)
    monkeypatch.setattr(inference, "time", types.SimpleNamespace(monotonic=lambda: clock.now))

    def predict(images):
        clock.now += seconds
        clock.calls += 1
        return tf.zeros([1])

    spans, of_window = inference._spans(predict, None, kind)
    assert (of_window, len(spans), clock.calls) == (calls, windows, before + windows * calls)
    assert all(end - begin == pytest.approx(calls * seconds) for begin, end in spans)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_predictions_are_timed(session, tiny_model, jit_compile):
    before = [v.numpy() for v in tiny_model.variables]
    measured = inference.measure(session, tiny_model, features=IMAGES[:32], jit_compile=jit_compile)
    rows = measured["rows"]
    assert [row["batch_size"] for row in rows][:3] == [1, 32, 8]
    assert all(row["examples_per_second"] > 0 and row["watts"] == 50 for row in rows)
    assert measured["problem"] is None and 0 < measured["seconds"] < 60
    for a, b in zip(before, tiny_model.variables, strict=True):
        assert (a == b.numpy()).all()


def fake_times(monkeypatch, seconds_of):
    """`inference._spans` of one call each, whose seconds or error are a function of the batch."""

    def spans(predict, images, kind):
        size = images.shape[0]
        if isinstance(seconds_of(size), Exception):
            raise seconds_of(size)
        return [(0.0, seconds_of(size))], 1

    monkeypatch.setattr(inference, "_spans", spans)


def sizes_of(session, model, batch_size=64):
    measured = inference.measure(session, model, features=IMAGES[:batch_size], jit_compile=False)
    return [row["batch_size"] for row in measured["rows"]], measured["problem"]


def test_smaller_batches_are_tried_while_they_are_faster(monkeypatch, session, tiny_model):
    fake_times(monkeypatch, lambda size: size)
    assert sizes_of(session, tiny_model) == ([1, 64, 16], None)
    fake_times(monkeypatch, lambda size: size**2)
    assert sizes_of(session, tiny_model) == ([1, 64, 16, 4], None)


def test_the_median_window_counts(monkeypatch, session, tiny_model):
    monkeypatch.setattr(inference, "_spans", lambda *_: ([(0, 1), (0, 4), (0, 2)], 10))
    measured = inference.measure(session, tiny_model, features=IMAGES[:1], jit_compile=False)
    assert [row["examples_per_second"] for row in measured["rows"]] == [5]


def test_a_batch_too_large_for_the_memory_is_left_out(monkeypatch, session, tiny_model):
    full = tf.errors.ResourceExhaustedError(None, None, "OOM")
    fake_times(monkeypatch, lambda size: full if size == 64 else size)
    sizes, problem = sizes_of(session, tiny_model)
    assert sizes[:2] == [1, 16] and problem == "batch 64 does not fit into the memory"


def test_another_failure_ends_the_measurement_with_its_reason(monkeypatch, session, tiny_model):
    broken = tf.errors.InternalError(None, None, "no such thing\nmore")
    fake_times(monkeypatch, lambda size: broken if size == 64 else size)
    assert sizes_of(session, tiny_model) == ([1], "batch 64 failed: no such thing")


def test_a_long_measurement_is_cut_short(monkeypatch, session, tiny_model):
    fake_times(monkeypatch, lambda size: size)
    monkeypatch.setattr(inference, "LIMIT_S", -1.0)
    assert sizes_of(session, tiny_model) == ([1, 64], None)
