"""What stops and what logs a training whose steps are skipped, in plain Keras' `fit`."""

import csv

import keras
import numpy as np
import pytest

import tfmp
from tfmp.errors import NonFiniteError


@pytest.mark.parametrize(
    ("series", "epochs", "message"),
    [
        (
            ".x.xxxx",
            1,
            "in the last 4 steps, up to step 7; loss scale now 1, 5 steps skipped in all",
        ),
        (
            "xx",
            9,
            "in the last 4 steps, up to step 4; loss scale now 1, 4 steps skipped in all",
        ),
        # It looks while the epoch goes on, before its 100th step.
        (
            "x" * 150,
            1,
            "in the last 99 steps, up to step 99; loss scale now 1, 99 steps skipped in all",
        ),
    ],
    ids=["end of an epoch", "over epochs", "within an epoch"],
)
def test_the_guard_stops_and_names_the_numbers(linear, batches, series, epochs, message):
    guard = tfmp.LossScaleGuard(max_consecutive_skips=3)
    before = linear.get_weights()
    with pytest.raises(NonFiniteError, match=message):
        linear.fit(batches(series), epochs=epochs, callbacks=[guard], verbose=0, shuffle=False)
    if "." not in series:
        for old, new in zip(before, linear.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("series", ["xxx", "xxx.xxx", "xxxx."])
def test_the_guard_lets_so_many_skips_pass(linear, batches, series):
    guard = tfmp.LossScaleGuard(max_consecutive_skips=3)
    linear.fit(batches(series), callbacks=[guard], verbose=0, shuffle=False)
    assert linear.optimizer.skipped_steps.numpy() == series.count("x")


def test_the_guard_allows_fifty_unless_told(linear, batches):
    linear.fit(batches("x" * 50), callbacks=[tfmp.LossScaleGuard()], verbose=0, shuffle=False)
    with pytest.raises(NonFiniteError, match="in the last 51 steps"):
        linear.fit(batches("x"), callbacks=[tfmp.LossScaleGuard()], verbose=0, shuffle=False)


def test_the_guard_watches_every_optimizer(pair):
    images = np.ones((5, 2), "float32")
    bad = np.array([[1, np.inf]] * 5, "float32")
    with pytest.raises(NonFiniteError, match="in the last 5 steps, up to step 5"):
        pair.fit(
            images, bad, batch_size=1, callbacks=[tfmp.LossScaleGuard(3)], verbose=0, shuffle=False
        )
    assert pair.first_optimizer.iterations.numpy() == 5
    assert np.isfinite(np.concatenate([w.ravel() for w in pair.get_weights()])).all()


def test_a_model_without_loss_scale_is_no_concern_of_theirs(batches):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [tfmp.LossScaleGuard(0), tfmp.LossScaleLogger()]
    history = model.fit(batches(".x"), callbacks=callbacks, verbose=0, shuffle=False).history
    assert set(history) == {"loss"}


COLUMNS = {  # after "..x" and after "...": the scale grows after three good steps
    "loss_scale": [4, 8],
    "good_steps": [0, 0],
    "skipped_steps": [1, 1],
    "last_overflow_step": [3, 3],
}


def test_the_logger_fills_history_and_csv(linear, batches, tmp_path):
    log = tmp_path / "log.csv"
    callbacks = [tfmp.LossScaleLogger(), keras.callbacks.CSVLogger(log, append=True)]
    for series, epoch in (("..x", 0), ("...", 1)):
        history = linear.fit(
            batches(series),
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,
        ).history
        for name, values in COLUMNS.items():
            assert history[name] == [values[epoch]], name
    with open(log, newline="") as lines:
        rows = list(csv.DictReader(lines))
    for name, values in COLUMNS.items():
        assert [float(row[name]) for row in rows] == values, name


def test_with_several_optimizers_each_has_its_columns(pair):
    images = np.ones((4, 2), "float32")
    bad = np.array([[1, 1], [1, np.inf], [1, np.inf], [1, 1]], "float32")
    history = pair.fit(
        images, bad, batch_size=1, callbacks=[tfmp.LossScaleLogger()], verbose=0, shuffle=False
    ).history
    expected = {
        "one": dict(loss_scale=2.0**15, good_steps=4, skipped_steps=0, last_overflow_step=0),
        "two": dict(loss_scale=2.0**13, good_steps=1, skipped_steps=2, last_overflow_step=3),
    }
    for prefix, columns in expected.items():
        assert {name: history[f"{prefix}_{name}"] for name in columns} == {
            name: [value] for name, value in columns.items()
        }
    assert len(history) == 8 + 1
