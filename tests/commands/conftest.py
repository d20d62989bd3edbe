"""A run of the recipe on the digits, for the tools that take one."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ["--policy=float32", "--epochs=8", "--measure_inference=false", "--label_smoothing=0"]


@pytest.fixture(scope="session")
def program():
    """Runs Python on words, in a process of its own."""

    def run(*words, **variables):
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        )

    return run


@pytest.fixture(scope="session")
def trained(program, tmp_path_factory):
    """The folder of a run, trained by the recipe in a process of its own."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    ended = program("-m", "tfmp.recipes.resnet", *TRAIN, f"--workdir={folder}")
    assert ended.returncode == 0, ended.stderr
    return folder
