"""The cost card: sums that a person can check, and what it says where something is missing."""

import dataclasses
import threading
import time
import types

import keras
import pytest

from tfmp import errors, power
from tfmp.training import Fitted, TrainingConfig, cost, fit, stopwatch
from tfmp.training.session import Session

BASE = TrainingConfig(epochs=2, warmup_epochs=1, batch_size=256, seed=5)
# 3,000 s at 400 W but for the compiling; 100 images a second.
FITTED = Fitted(
    compile_seconds=100.0,
    seconds_before=0.0,
    seconds_per_epoch=(10.0, 10.0),
    examples_per_second=100.0,
    seconds=3600.0,
    joules=1.2e6,
    joules_before=0.0,
    watts=400.0,
)
MEASURED = {
    "rows": [
        {"batch_size": 1, "examples_per_second": 250.0, "watts": 100.0},
        {"batch_size": 64, "examples_per_second": 1000.0, "watts": 300.0},
        {"batch_size": 16, "examples_per_second": 500.0, "watts": 200.0},
    ],
    "seconds": 3.0,
    "problem": None,
}


def card(fitted=FITTED, **changes):
    settings = {
        "epoch_examples": 2000,
        "devices": 1,
        "price_per_hour": None,
        "joules_missing": "said why",
        "inference_missing": "not yet",
    }
    return cost.card(fitted, **settings | changes)


class Power:
    """A sampler of a card that always takes 50 watts, but where it is silent."""

    def __init__(self, silent=False):
        self.begin, self.silent = time.perf_counter(), silent

    def joules(self):
        return float("nan") if self.silent else 50.0 * (time.perf_counter() - self.begin)


class Stop(keras.callbacks.Callback):
    """Ends training as a signal does, once a checkpoint was saved."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise errors.StoppedError("stopped")


# --- sums


def test_training():
    found = card(devices=8, price_per_hour=2.5)
    assert found["seconds_per_epoch"] == 2000 / 100
    assert found["joules_per_epoch"] == 400 * 20
    assert (found["seconds"], found["joules"], found["joules_missing"]) == (3600, 1.2e6, None)
    assert (found["devices"], found["device_hours"], found["price"]) == (8, 8, 20)
    assert found["inference"] is found["break_even_inferences"] is None


def test_predictions_and_break_even():
    found = cost.with_inference(card(devices=2, price_per_hour=1.8), MEASURED)
    assert found["inference"]["batch_1"] == {
        "batch_size": 1,
        "examples_per_second": 250,
        "joules_per_example": 100 / 250,
        "price_per_million": pytest.approx(4000 * 1.8 / 3600),
    }
    assert found["inference"]["best"] == {
        "batch_size": 64,
        "examples_per_second": 1000,
        "joules_per_example": 300 / 1000,
        "price_per_million": pytest.approx(1000 * 1.8 / 3600),
    }
    # 1.2 MJ of 0.3 J each; 2 x 3,600 s of 1 ms each. With one more, training is the smaller share.
    assert found["break_even_inferences"] == {"joules": 4_000_001, "device_time": 7_200_001}
    assert found["inference_missing"] is None
    # In money it is the same as in time.
    million = found["inference"]["best"]["price_per_million"]
    assert 7.2 * million == pytest.approx(found["price"])


def test_without_power_and_price_nothing_is_guessed():
    fitted = dataclasses.replace(FITTED, joules=None, watts=None)
    measured = MEASURED | {"rows": [row | {"watts": None} for row in MEASURED["rows"]]}
    found = cost.with_inference(card(fitted), measured)
    for name in ("joules", "joules_per_epoch", "price", "price_per_hour"):
        assert found[name] is None, name
    assert found["joules_missing"] == "said why"
    assert found["inference"]["best"]["joules_per_example"] is None
    assert found["inference"]["best"]["price_per_million"] is None
    assert found["break_even_inferences"] == {"joules": None, "device_time": 3_600_001}
    text = str(cost.lines(found, "cpu"))
    assert "not measured: said why" in text and "price" not in text and " J" not in text


def test_too_few_steps_for_an_epochs_time():
    found = card(dataclasses.replace(FITTED, examples_per_second=None, watts=None))
    assert found["seconds_per_epoch"] is found["joules_per_epoch"] is None
    assert "an epoch" not in cost.lines(found, "gpu")


def test_no_prediction_was_possible():
    measured = {"rows": [], "seconds": 1.0, "problem": "batch 1 does not fit into the memory"}
    found = cost.with_inference(card(), measured)
    assert found["inference"] is found["break_even_inferences"] is None
    assert found["inference_missing"] == "batch 1 does not fit into the memory"
    said = "not measured: batch 1 does not fit into the memory"
    assert cost.lines(found, "gpu")["predictions"] == said


def test_some_predictions_were_not_possible():
    found = cost.with_inference(card(), MEASURED | {"problem": "batch 256 failed"})
    assert found["inference"]["best"]["batch_size"] == 64
    assert cost.lines(found, "gpu")["predictions"] == "not all measured: batch 256 failed"


def test_a_price_of_nothing_is_a_price():
    found = cost.with_inference(card(price_per_hour=0.0), MEASURED)
    assert found["price"] == found["inference"]["best"]["price_per_million"] == 0
    assert cost.lines(found, "gpu")["training cost"] == "3600.0 s, 1 GPU hours, 1200 kJ, price 0"


def test_lines():
    found = cost.lines(cost.with_inference(card(price_per_hour=1.8), MEASURED), "gpu")
    assert found == {
        "training cost": "3600.0 s, 1 GPU hours, 1200 kJ, price 1.8",
        "an epoch": "20 s, 8 kJ",
        "batch 1": "250 predictions/s, 0.4 J each, price 2 a million",
        "batch 64": "1,000 predictions/s, 0.3 J each, price 0.5 a million",
        "break-even": "after 4,000,001 predictions in energy, 3,600,001 predictions in device time",
    }


@pytest.mark.parametrize(
    ("kind", "before", "said"),
    [
        ("cpu", None, "no power is read on a CPU"),
        ("gpu", None, "an earlier part of the run was not measured"),
        ("gpu", 5.0, "neither nvidia-ml-py nor nvidia-smi told the power throughout"),
    ],
)
def test_why_energy_is_missing(kind, before, said):
    fitted = dataclasses.replace(FITTED, joules=None, joules_before=before)
    assert cost.joules_missing(fitted, kind) == said


# --- what is measured in training


def test_fit_counts_energy(make_classifier, digits, tmp_path):
    fitted = fit(make_classifier(config=BASE), digits, BASE, tmp_path, power=Power())
    assert fitted.watts == pytest.approx(50, rel=0.05)
    assert fitted.joules == pytest.approx(50 * fitted.seconds, rel=0.05)
    assert fitted.compile_seconds + sum(fitted.seconds_per_epoch) < fitted.seconds


@pytest.mark.parametrize(
    ("first", "second", "known"),
    [(Power, Power, True), (lambda: None, Power, False), (Power, lambda: None, False)],
)
def test_a_resumed_run_counts_all_its_parts(
    make_classifier, digits, tmp_path, first, second, known
):
    with pytest.raises(errors.StoppedError):
        fit(
            make_classifier(config=BASE),
            digits,
            BASE,
            tmp_path,
            power=first(),
            extra_callbacks=[Stop()],
        )
    fitted = fit(make_classifier(config=BASE), digits, BASE, tmp_path, power=second())
    assert fitted.seconds > fitted.seconds_before > 0
    if not known:
        assert fitted.joules is None
        assert (fitted.watts is None) == (second() is None)
        return
    assert fitted.joules_before == pytest.approx(50 * fitted.seconds_before, rel=0.05)
    assert fitted.joules == pytest.approx(50 * fitted.seconds, rel=0.05)


def test_without_a_sampler_there_is_no_energy_and_no_thread(make_classifier, digits, tmp_path):
    class Threads(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            seen.append(threading.enumerate())

    seen: list = []
    threads = threading.enumerate()
    fitted = fit(make_classifier(config=BASE), digits, BASE, tmp_path, extra_callbacks=[Threads()])
    assert seen == [threads]
    assert fitted.joules is fitted.watts is None and fitted.joules_before == 0


def test_epochs_of_unknown_energy_are_left_out_of_the_mean(monkeypatch):
    """One of 2 s at 50 W, and one of 1 s in which the driver was silent."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    sampler = Power()
    watch = stopwatch.Stopwatch(power=sampler)
    watch.set_model(types.SimpleNamespace(step=0))
    watch._calls = 5
    for seconds, silent in ((2.0, False), (1.0, True)):
        sampler.silent = silent
        watch.on_epoch_begin(0)
        clock.now += seconds
        watch.on_epoch_end(0)
    assert watch.watts() == 50
    assert watch.per_epoch == [2.0, 1.0]


def test_a_session_samples_the_gpus_that_train(monkeypatch):
    monkeypatch.setattr(power, "cuda_gpus", lambda: ["GPU-a", "GPU-b", "GPU-c"])

    def gpus(kind, count, replicas, **settings):
        fields = {field.name: None for field in dataclasses.fields(Session)}
        session = Session(
            **fields
            | {
                "device": types.SimpleNamespace(kind=kind, count=count),
                "strategy": types.SimpleNamespace(num_replicas_in_sync=replicas),
            }
        )
        return session.power(**settings)._gpus

    assert gpus("gpu", 3, 2) == ["GPU-a", "GPU-b"]
    assert gpus("gpu", 1, 2) == ["GPU-a"]  # two logical GPUs of one
    assert gpus("gpu", 3, 3, gpus=1) == ["GPU-a"]
    assert gpus("cpu", 1, 1) == []
