"""A recipe on two replicas: deterministic, resumed to the bit, and honest about what was used."""

import json
import os
import random
import re
import signal
import time

import keras
import numpy as np
import pytest
from helpers import DEVICE

FLAGS = [
    *["--strategy=mirrored", "--model=tiny", "--policy=mixed_float16", "--jit_compile=false"],
    *["--epochs=2", "--batch_size=64", "--warmup_epochs=1", "--deterministic", "--seed=7"],
    *["--save_every_steps=5", "--ema=0.9", "--mixup=0.1", "--optimizer=adamw"],
    "--measure_inference=false",
]
STEPS = 20  # of an epoch
SEED = int(os.environ.get("TFMP_TEST_SEED", time.time_ns() % 10**9))


@pytest.fixture(scope="module")
def folder(run_program, tmp_path_factory):
    """The folder of the runs `whole`, `stopped` and `killed`, of which two were resumed."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, *more, **settings):
        return {"flags": [*FLAGS, f"--workdir={folder / name}", *more], **settings}

    def run_all(*runs):
        return run_program("recipes", json.dumps(runs))

    killed_at = random.Random(SEED).randrange(1, 2 * STEPS)
    print(f"TFMP_TEST_SEED={SEED}: killed before step {killed_at}")
    first = run_all(
        run("whole", "--measure_inference=true"),
        run("stopped", signal="SIGTERM", step=STEPS + 12),
        run("killed", signal="SIGKILL", step=killed_at),
    )
    assert first.returncode == -signal.SIGKILL, first
    assert "StoppedError" not in first.stderr and "--resume" in first.stderr, first
    assert (folder / "whole" / "results.json").exists(), first
    for name in ("stopped", "killed"):
        assert not (folder / name / "results.json").exists()
    second = run_all(
        run("stopped", "--resume"),
        run("killed", "--resume"),
        run(
            "synchronized",
            "--sync_batch_norm",
            "--jit_compile=true",
            "--warmup_epochs=0",
            "--epochs=1",
        ),
        run("odd", "--batch_size=63"),
    )
    assert second.returncode == 0, second
    (folder / "statuses.json").write_text(second.stdout.splitlines()[-1])
    (folder / "stdout").write_text(second.stdout)
    (folder / "stderr").write_text(second.stderr)
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_resumed_in_a_fresh_process_it_is_the_run_that_was_never_stopped(folder, name):
    whole, part = (keras.saving.load_model(folder / run / "model.keras") for run in ("whole", name))
    for one, other in zip(whole.get_weights(), part.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert results(folder / name)["steps"] == 2 * STEPS
    one, other = (results(folder / run)["final"] for run in ("whole", name))
    assert one["test_accuracy"] > 0.5
    # Metrics are kept as the replicas' sum, which is added up in another order.
    assert one == pytest.approx(other, rel=1e-5)


def test_results_say_how_many_replicas_trained(folder):
    found = results(folder / "whole")
    assert (found["replicas"], found["workers"]) == (2, 1)
    assert found["strategy"] == "MirroredStrategy"
    assert found["config"]["strategy"] == "mirrored"
    assert found["deterministic"] is True
    assert found["cost"]["devices"] == (2 if DEVICE == "GPU" else 1)  # two logical CPUs are one
    assert found["cost"]["inference"]["best"]["examples_per_second"] > 0


def test_synchronized_batch_norm_says_that_xla_is_off(folder):
    found = results(folder / "synchronized")
    assert found["config"]["jit_compile"] == "true" and found["jit_compile"] is False
    assert np.isfinite(found["final"]["loss"])
    assert re.search("XLA +off: synchronized BatchNorm", (folder / "stdout").read_text())


def test_a_batch_that_replicas_can_not_share_is_one_line_and_status_2(folder):
    assert json.loads((folder / "statuses.json").read_text()) == [0, 0, 0, 2]
    (said,) = (x for x in (folder / "stderr").read_text().splitlines() if "batch size" in x)
    assert said.startswith("error: ") and said.endswith("evenly. Received: 63. Take 62 or 64.")
    assert "Traceback" not in (folder / "stderr").read_text()
    assert not (folder / "odd").exists()
