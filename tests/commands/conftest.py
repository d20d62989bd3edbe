"""A run of the recipe on the digits, for the tools that take one; Ctrl-C and SIGTERM."""

import functools
import pathlib
import signal
import threading
import time

import fresh
import pytest

from tfmp import cli
from tfmp.recipes import resnet

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ["--policy=float32", "--epochs=8", "--measure_inference=false", "--label_smoothing=0"]


@pytest.fixture(scope="session")
def program():
    """Runs a program of the project, in a process of its own."""
    return functools.partial(fresh.run, cwd=ROOT)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run of the recipe."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    resnet.run(cli.parse(resnet.Config, [*TRAIN, f"--workdir={folder}"]))
    return folder


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def signal_once(request):
    """A function of a condition: once that holds, this process gets Ctrl-C, or SIGTERM."""
    # Ctrl-C as in a shell's foreground. What has no handler for SIGTERM must not end the tests.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_IGN}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    over = threading.Event()

    def send(condition):
        while not condition() and not over.is_set():
            time.sleep(0.02)
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident, request.param)

    yield lambda condition: threading.Thread(target=send, args=[condition]).start()
    over.set()
    for number, handler in former.items():
        signal.signal(number, handler)
