"""Tests with several replicas, which are logical CPUs, each in a process of its own.

Two MirroredStrategies in one process can collide on their collective keys, and a process that
hangs in a collective ignores SIGTERM. So a test with the mark `replicas(n)` runs in a child: a
pytest of its own with n logical CPUs, killed with all its own children after TIMEOUT seconds. The
chosen tests of one file with the same n share a child, and its strategy.

With TFMP_TEST_DEVICE=GPU in the environment the replicas are GPUs, which NCCL joins.
"""

import functools
import os
import pathlib
import tempfile
import xml.etree.ElementTree

import fresh
import pytest
import tensorflow as tf
from helpers import DEVICE, start

HERE = pathlib.Path(__file__).parent
IN_CHILD = "TFMP_TEST_REPLICAS"
TIMEOUT = 240 if DEVICE == "CPU" else 400  # seconds; for GPUs XLA compiles longer


def pytest_configure(config):
    config.addinivalue_line("markers", "replicas(n): run in a process with n logical CPUs")
    config.addinivalue_line("markers", "keras_behavior: of Keras alone; fails when Keras mends it")


if IN_CHILD in os.environ:
    start(int(os.environ[IN_CHILD]))


@pytest.fixture(scope="session")
def strategy():
    """The child's only strategy, over all its devices."""
    if IN_CHILD not in os.environ:
        return None
    return tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices(DEVICE)])


def run_python(*words, replicas=2):
    """`fresh.run` with a number of logical CPUs for the program to make, or of GPUs to see."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST_")}
    environment[IN_CHILD] = str(replicas)
    if DEVICE == "GPU":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:replicas])
    return fresh.run(*words, env=environment, timeout=TIMEOUT)


@pytest.fixture(scope="session")
def run_program():
    """A function that runs one of `programs.py`, by its name and arguments, on two replicas."""
    return functools.partial(run_python, HERE / "programs.py")


@functools.cache
def run_tests(file, names, replicas):
    """Runs tests of one file in a child.

    Returns:
        (dict of what is said of each test that ended, "" if it passed; the child's output).
    """
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        ended = run_python(
            *["-m", "pytest", "-v", "-o", "addopts=", "--import-mode=importlib"],
            *["--strict-markers", "-p", "no:cacheprovider", "--durations=0"],
            *[f"--junitxml={report}", *[f"{file}::{name}" for name in names]],
            replicas=replicas,
        )
        cases = xml.etree.ElementTree.parse(report).iter("testcase") if report.exists() else ()
        failures = {
            case.get("name"): "\n".join(
                part.text for part in case if part.tag in ("failure", "error")
            )
            for case in cases
        }
    return failures, f"exit status {ended.returncode}\n{ended.stdout}\n{ended.stderr}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Passes a marked test on to a child."""
    mark = pyfuncitem.get_closest_marker("replicas")
    if mark is None or IN_CHILD in os.environ:
        return None

    def shares_child(item):
        other = item.get_closest_marker("replicas")
        return item.path == pyfuncitem.path and other and other.args == mark.args

    names = tuple(item.name for item in pyfuncitem.session.items if shares_child(item))
    failures, output = run_tests(pyfuncitem.path, names, *mark.args)
    if failure := failures.get(pyfuncitem.name, "The test did not end."):
        pytest.fail(f"{failure}\n{output}", pytrace=False)
    return True
