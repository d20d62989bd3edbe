"""Starts the workers of a training run on this machine, to try several of them.

Examples:
    python -m tfmp launch -n 2 -- python -m tfmp.recipes.resnet
    python -m tfmp launch --workers=3 -- python -m tfmp.recipes.resnet --epochs=3

Each worker is the command behind `--`, with a TF_CONFIG of its own that names free ports; worker 0
is the chief. Their output is shown as it comes, each line after its worker. On a machine with GPUs
they are shared out evenly. Across machines Slurm or Kubernetes starts the workers.

It ends when all have ended: with status 0 if all did, else with that of the first one that did
not, but not 75 (a peer was lost; killed) if another has a status of its own. A worker that outlives
another's failure by more than --grace seconds is killed. Ctrl-C and SIGTERM are passed on to all
workers, which save one checkpoint and stop with status 75; a second one kills them.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from tfmp import cli, hardware
from tfmp.errors import TfmpError, UserError

AGAIN = 75


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the launcher."""

    command: tuple[str, ...] = cli.flag(
        (), "Program to start, with its flags, behind `--`.", positional=True
    )
    workers: int = cli.flag(2, "Workers to start.", short="n")
    grace: float = cli.flag(60.0, "Seconds to live on after another worker's failure.")

    def __post_init__(self):
        """Checks the ranges."""
        if self.workers < 1:
            raise UserError(f"Expected --workers above 0. Received: {self.workers}.")
        if not self.grace >= 0:
            raise UserError(f"Expected --grace of 0 or more. Received: {self.grace}.")


class WorkerError(TfmpError):
    """A worker did not end well; has its exit status."""

    def __init__(self, message, status):
        super().__init__(message)
        self.exit_status = status


def run(config):
    """Starts the workers and waits for them.

    Raises:
        UserError: There is no command, or it can't be started.
        WorkerError: A worker did not end well.
    """
    if not config.command:
        raise UserError(
            "Expected a program to start. Received none. Try: python -m tfmp launch -n 2 -- "
            "python -m tfmp.recipes.resnet"
        )
    addresses = [f"localhost:{port}" for port in free_ports(config.workers)]
    started: list[subprocess.Popen] = []
    shown: list[threading.Thread] = []
    try:
        with _passing_signals_on(started):
            for index in range(config.workers):
                process = _start(config, index, addresses)
                started.append(process)
                shown.append(threading.Thread(target=_show, args=(index, process), daemon=True))
                shown[-1].start()
            statuses = _wait(started, shown, config.grace)
    finally:
        for process, thread in zip(started, shown, strict=False):
            if _runs(process, thread):
                _signal(process, signal.SIGKILL)  # one in a collective hears nothing else
                process.wait()
    for thread in shown:
        thread.join()
    failed = [(i, status) for i, status in enumerate(statuses) if status]
    # Of the workers that failed those that lost a peer, or were killed, say the least.
    failed.sort(key=lambda pair: pair[1] == AGAIN or pair[1] < 0)
    if failed:
        index, status = failed[0]
        all_of_them = ", ".join(map(str, statuses))
        raise WorkerError(
            f"worker {index} ended with status {status} (of all: {all_of_them}).",
            status if status > 0 else AGAIN,
        )


def free_ports(count):
    """Ports of this machine that nothing listens at now: list of `count` different int."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _start(config, index, addresses):
    cluster = {"worker": addresses}
    described = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    environment = os.environ | {"TF_CONFIG": described} | _gpus(index, config.workers)
    words = list(config.command)
    if words[0] in ("python", "python3"):
        words[0] = sys.executable  # the one that has tfmp
    try:
        return subprocess.Popen(
            words,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # a terminal's Ctrl-C comes by this program alone, so once
        )
    except OSError as error:
        raise UserError(f"Can't start {words[0]!r}: {error}.") from None


def _gpus(index, workers):
    """The variable that gives a worker its share of the GPUs; empty where there are none."""
    found = hardware.cuda_devices()
    if not found:
        return {}
    if len(found) < workers:
        raise UserError(
            f"Expected at most a worker for each of {len(found)} GPUs. Received: "
            f"--workers={workers}. CUDA_VISIBLE_DEVICES= (empty) trains on the CPU."
        )
    share = len(found) // workers
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(number) for number in range(len(found))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[index * share : (index + 1) * share])}


@contextlib.contextmanager
def _passing_signals_on(started):
    """Passes the first SIGINT or SIGTERM on to the workers; a second one is a Ctrl-C."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def pass_on(number, frame):
        for each in numbers:
            signal.signal(each, signal.default_int_handler)
        for process in started:
            _signal(process, number)

    former = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _show(index, process):
    with process.stdout as lines:
        for line in lines:
            print(f"[{index}] {line}", end="", flush=True)


def _signal(process, number):
    """Signals a worker and what it started: the command may be a shell that runs the program."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _runs(process, thread):
    """Whether a worker, or what it started, lives: its output has no end before."""
    return process.poll() is None or thread.is_alive()


def _wait(started, shown, grace):
    """Exit statuses; a failure gives the others `grace` seconds."""
    end = None
    while any(map(_runs, started, shown)):
        if end is None and any(process.poll() for process in started):
            end = time.monotonic() + grace
        if end is not None and time.monotonic() > end:
            break
        time.sleep(0.1)
    return [process.poll() if process.poll() is not None else -9 for process in started]
