"""A recipe as a newcomer starts it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

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


@pytest.fixture(scope="session")
def trivial_accuracy():
    """Accuracy of a logistic regression of the digits' pixels, on the last 360."""
    digits = datasets.load_digits()
    train, test = np.split(np.arange(len(digits.data)), [-360])
    trivial = LogisticRegression(max_iter=5000).fit(digits.data[train] / 16, digits.target[train])
    accuracy = trivial.score(digits.data[test] / 16, digits.target[test])
    assert accuracy == pytest.approx(0.90, abs=0.005)
    return accuracy
