"""Child processes that measure: started with an environment of their own, ended in time."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from tfmp import cli, errors, power

PEER = pathlib.Path(__file__).with_name("peer_torch.py")
# What a process with TensorFlow may have set for its own libraries.
OURS_ONLY = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")
OURS_ONLY_PREFIXES = ("TF_", "KERAS_", "CUDNN_", "NVIDIA_TF32_")


class ChildError(Exception):
    """A child gave no measurement; the message says why, in one line."""


def measure(side, spec, *, peer_python, limit_s):
    """Runs one measurement in a process of its own.

    Args:
        side: "tfmp" or "torch".
        spec: Dict that the child gets as JSON.
        peer_python: Python that has torch.
        limit_s: Seconds after which it is killed.

    Returns:
        The dict that the child printed as its last line.

    Raises:
        ChildError: It failed, or did not end in time.
    """
    environment = with_gpus(spec["replicas"])
    command = [sys.executable, "-m", "tfmp.commands.benchmark.ours"]
    if side == "torch":
        command, environment = [peer_python, str(PEER)], peer_environment(environment)
    return run([*command, json.dumps(spec)], environment, limit_s)


def with_gpus(count=1):
    """This process's environment, with so many GPUs, the same for all, numbered as NVML does."""
    chosen = ",".join(power.device_indices(count))
    return os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": chosen}


def peer_environment(environment):
    """An environment without our library paths and settings."""
    return {
        name: value
        for name, value in environment.items()
        if name not in OURS_ONLY and not name.startswith(OURS_ONLY_PREFIXES)
    }


def run(command, environment, limit_s):
    """Runs a command whose last line that is a JSON dict is its result; see `measure`.

    Whatever ends this function ends the command's whole process group.
    """
    # Files, since a pipe that a grandchild holds open would keep us waiting behind the end.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            raise ChildError(f"can't start {command[0]}: {error.strerror}") from None
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"not done after {limit_s} s (--limit_seconds)") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return _result(status, _text(out), _text(err))


def answer(task, spec):
    """The child's side: prints what a task gives of its spec, or ends as a command line would.

    Args:
        task: Function of the spec that returns what JSON can write.
        spec: The dict of `measure`.
    """
    try:
        print("\n" + json.dumps(task(spec)), flush=True)
    except errors.TfmpError as error:
        # At once: TensorFlow may abort while it frees a full GPU's memory.
        cli.leave(error.exit_status, str(error), at_once=True)


def _text(file):
    file.seek(0)
    return file.read()


def _result(status, out, err):
    lines = out.splitlines() or [""]
    if status == 0:
        for line in reversed(lines):  # a user's module may print when the process ends
            with contextlib.suppress(ValueError):
                if isinstance(found := json.loads(line), dict):
                    return found
        raise ChildError(f"printed no measurement, but {lines[-1]!r}")
    if status < 0:
        raise ChildError(f"ended by {signal.Signals(-status).name}")
    said = [line for line in err.splitlines() if line.strip()] or ["nothing said why"]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    raise ChildError((errors or said)[-1].strip())
