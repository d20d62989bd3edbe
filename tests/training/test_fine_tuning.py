"""Training in two phases: what each changes, and that stopping anywhere changes nothing."""

import json
import os
import signal

import keras
import numpy as np
import pytest

import tfmp
from tfmp import cli, errors, files
from tfmp.commands.audit import contents
from tfmp.models import load_weights
from tfmp.training import fine_tuning, loading, loop

FLAGS = ["--epochs=2", "--head_epochs=2", "--warmup_epochs=0.5", "--batch_size=256", "--seed=3"]
FLAGS += ["--measure_inference=false", "--save_every_steps=3"]  # epochs have 5 steps
FLAGS += ["--optimizer=adamw", "--learning_rate=0.01"]
HALF = ["--policy=mixed_float16", "--jit_compile=false", "--initial_scale=1048576"]
FULL = ["--policy=float32"]


def tiny(classes, input_shape):
    """All kinds of state: weights, BatchNorm's statistics, dropout's seed."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Rescaling(1 / 128, dtype="float32"),
            keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(classes, dtype="float32", name="head"),
        ],
        name="tiny",
    )


def train(workdir, *flags):
    """A run in this process; returns (its classifier, its results)."""
    config = cli.parse(fine_tuning.FineTuningConfig, [*FLAGS, f"--workdir={workdir}", *flags])
    prepared = fine_tuning.prepare("tiny", config, tiny, load_weights)
    return prepared[2], fine_tuning.run(config, prepared, 0.0)


class Killed(Exception):
    """In the place of a signal that leaves no time to save."""


class At(keras.callbacks.Callback):
    """Stops a phase at its step: by SIGTERM, which saves, or as SIGKILL does."""

    def __init__(self, step, saves):
        super().__init__()
        self.at, self.saves = step, saves

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.step) == self.at:
            if not self.saves:
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stop_at(monkeypatch):
    """A function that stops all further runs in a phase (1 or 2) at a step of it."""
    fit = loop.fit

    def stop(phase, step, saves=False):
        def stopping(classifier, data, config, workdir, **options):
            if phase == (1 if workdir.name == loading.FIRST_PHASE else 2):
                options["extra_callbacks"] = [At(step, saves)]
            return fit(classifier, data, config, workdir, **options)

        monkeypatch.setattr(loop, "fit", stopping)

    return stop


def weights(run):
    model = keras.saving.load_model(run / "model.keras")
    return {v.path: v.numpy() for v in model.variables if "seed" not in v.path}


def test_stopped_in_each_phase_and_between_them_it_is_the_same_run(stop_at, tmp_path):
    whole, parts, flags = tmp_path / "whole", tmp_path / "parts", HALF
    _, expected = train(whole, *flags)
    # In the middle of each phase, and at the begin of the second, which has saved nothing then.
    for phase, step, saves in ((1, 4, False), (2, 0, False), (2, 8, True)):
        stop_at(phase, step, saves)
        with pytest.raises(errors.StoppedError if saves else Killed) as stopped:
            train(parts, *flags, "--resume")
        assert bool(list(parts.glob("checkpoints/*.index"))) == saves
    assert "after step 8, saved. Go on with the same flags" in str(stopped.value)
    stop_at(2, None)
    _, resumed = train(parts, *flags, "--resume")
    for (path, one), other in zip(weights(whole).items(), weights(parts).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)
    assert resumed["final"] == expected["final"]
    assert resumed["loss_scale"] == expected["loss_scale"]
    assert resumed["first_phase"]["final"] == expected["first_phase"]["final"]
    for folder in ("", loading.FIRST_PHASE):
        logs = [files.read_metrics(run / folder / "metrics.csv") for run in (whole, parts)]
        assert logs[0] == logs[1] and len(logs[0]) == 2
    with pytest.raises(errors.UserError, match="holds a finished run"):
        train(whole, *flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, classifier, results) of a run in float16 with BatchNorm frozen."""
    folder = tmp_path_factory.mktemp("fine_tuning") / "run"
    return folder, *train(folder, *HALF, "--freeze_batch_norm", "--epochs=1")


def test_each_phase_begins_at_the_first_loss_scale(trained):
    folder, _, results = trained
    first, second = (files.read_metrics(folder / x / "metrics.csv") for x in ("head", ""))
    # The head is in float32, and no other gradient is computed: nothing overflows.
    assert [row["loss_scale"] for row in first] == [2**20, 2**20]
    assert second[0]["loss_scale"] == 2 ** (20 - second[0]["skipped_steps"])
    assert results["loss_scale"]["initial"] == 2**20


def test_results_have_both_phases(trained):
    folder, _, results = trained
    assert json.loads((folder / "results.json").read_text()) == results
    phase = results["first_phase"]
    assert phase["epochs"] == 2 and 0 < phase["final"]["accuracy"] < 1
    assert phase["learning_rate"] == results["config"]["learning_rate"]
    assert results["steps"] == 5 and results["epochs"] == 1
    # The cost is of both.
    assert results["cost"]["seconds"] > phase["seconds"] > 0
    assert {x.name for x in (folder / "head").iterdir()} == {
        "checkpoints", "config.json", "data.json", "metrics.csv", "model.json",
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["--strategy=mirrored", "--gradient_accumulation_steps=2"])
def test_the_first_phase_changes_the_head_alone(stop_at, tmp_path, flag):
    """With two replicas, too, and in parts."""
    stop_at(2, 0)
    flags = [*FLAGS, *FULL, f"--workdir={tmp_path / 'run'}", flag]
    config = cli.parse(fine_tuning.FineTuningConfig, flags)
    prepared = fine_tuning.prepare("tiny", config, tiny, load_weights)
    model = prepared[2].model
    before = {v.path: v.numpy() for v in model.variables}
    with pytest.raises(Killed):
        fine_tuning.run(config, prepared, 0.0)
    changed = {v.path for v in model.variables if not np.array_equal(before[v.path], v)}
    assert {x for x in changed if "seed" not in x} == {"tiny/head/kernel", "tiny/head/bias"}
    # Gradients and optimizer state are there for the head alone.
    slots = json.loads((tmp_path / "run" / "head" / "model.json").read_text())["model"]["config"]
    assert [x["config"].get("trainable") for x in slots["layers"][1:]] == [False] * 6 + [True]
    assert len(model.trainable_variables) == 5  # all, for the second


def test_frozen_batch_norm_keeps_statistics_and_weights(trained, tmp_path):
    _, classifier, results = trained
    model = classifier.model
    bn, conv = model.get_layer("bn"), model.get_layer("conv")
    assert [float(np.ptp(x)) for x in bn.get_weights()] == [0, 0, 0, 0]
    assert results["model"]["parameters"]["trainable"] == conv.kernel.numpy().size + 730
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype("float32")
    part = keras.Model(model.inputs[0], bn.output)
    np.testing.assert_array_equal(part(images, training=True), part(images, training=False))
    _, free = train(tmp_path / "run", *FULL, "--epochs=1", "--head_epochs=0")
    assert free["model"]["parameters"]["trainable"] == conv.kernel.numpy().size + 730 + 16
    assert "first_phase" not in free and not (tmp_path / "run" / "head").exists()


def test_epochs_of_the_head_by_default(tmp_path):
    def epochs(*flags):
        phase = cli.parse(fine_tuning.FineTuningConfig, flags).first_phase
        return phase and phase.epochs

    assert epochs() is epochs("--head_epochs=0", "--weights=x.h5") is None
    assert epochs("--weights=x.h5", "--epochs=21") == 3
    assert epochs("--weights=x.h5", "--head_epochs=7") == epochs("--head_epochs=7") == 7
    rate = cli.parse(
        fine_tuning.FineTuningConfig, ["--head_epochs=1", "--head_learning_rate=0.5"]
    ).first_phase
    assert (rate.learning_rate, rate.warmup_epochs) == (0.5, None)


def test_a_run_that_was_stopped_in_its_first_phase_loads(stop_at, tmp_path):
    stop_at(1, 2, saves=True)
    with pytest.raises(errors.StoppedError):
        train(tmp_path / "run", *FULL)
    assert int(tfmp.load(tmp_path / "run").optimizer.iterations) == 2
    assert contents.read(tmp_path / "run").path == tmp_path / "run" / loading.FIRST_PHASE


def test_an_interrupted_first_phase_goes_on_only_when_asked(stop_at, tmp_path):
    stop_at(1, 1)
    with pytest.raises(Killed):
        train(tmp_path / "run", *FULL)
    with pytest.raises(errors.UserError, match="holds an interrupted run"):
        train(tmp_path / "run", *FULL)
    with pytest.raises(errors.UserError, match="--head_epochs was 2 and is 1"):
        train(tmp_path / "run", *FULL, "--head_epochs=1", "--resume")
    with pytest.raises(errors.UserError, match="--head_epochs 0 or more"):
        train(tmp_path / "run", "--head_epochs=-1")
