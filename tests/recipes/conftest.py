"""A recipe as a newcomer starts it, and as something stops it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

from tfmp import errors
from tfmp.training import loop

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def with_no_flags(tmp_path):
    """A function of a recipe's name, and of flags if there are some after all, that runs it.

    It returns the results and the run's folder; the run may take two minutes.
    """

    def run(name, *flags):
        ended = subprocess.run(
            [sys.executable, "-m", f"tfmp.recipes.{name}", *flags],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},  # code as a user has it
        )
        assert ended.returncode == 0, ended.stderr
        (workdir,) = (tmp_path / "runs").glob(f"{name}-*")
        results = json.loads((workdir / "results.json").read_text())
        assert results["policy"] == "mixed_float16" and results["loss_scale"]["final"] >= 1
        return results, workdir

    return run


class SignalAt(keras.callbacks.Callback):
    """Sends this process SIGTERM before a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.step) == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stopped_before(monkeypatch):
    """A function of a step's number: in its context a run in this process is stopped before it."""
    fit = loop.fit

    @contextlib.contextmanager
    def context(step):
        def stopped(*args, extra_callbacks, **kwargs):
            return fit(*args, extra_callbacks=[SignalAt(step), *extra_callbacks], **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "fit", stopped)
            with pytest.raises(errors.StoppedError, match=f"step {step}"):
                yield

    return context


@pytest.fixture(scope="session")
def trivial_accuracy():
    """Accuracy of a logistic regression of the digits' pixels, on the last 360."""
    digits = datasets.load_digits()
    train, test = np.split(np.arange(len(digits.data)), [-360])
    trivial = LogisticRegression(max_iter=5000).fit(digits.data[train] / 16, digits.target[train])
    accuracy = trivial.score(digits.data[test] / 16, digits.target[test])
    assert accuracy == pytest.approx(0.90, abs=0.005)
    return accuracy
