"""`python -m tfmp launch`: what each worker is told, and how it all ends."""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

from tfmp import cli, errors, workers
from tfmp.commands import launch

SAY = "import os; print(os.environ['TF_CONFIG'])"


def config(code, *flags):
    return cli.parse(launch.Config, [*flags, "--", "python", "-c", code])


def test_each_worker_is_told_who_it_is(capsys, monkeypatch):
    launch.run(config(SAY, "-n", "3"))
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    monkeypatch.setenv("TF_CONFIG", lines[2][4:])
    found = workers.in_environment()
    assert (found.index, found.count) == (2, 3)
    assert len({json.dumps(json.loads(line[4:])["cluster"]) for line in lines}) == 1


# The second worker is killed, or has an error of its own; the others lose a peer, or hang.
@pytest.mark.parametrize(
    ("own", "others", "status"),
    [
        ("sys.exit(2)", "sys.exit(75)", 2),
        (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", "sys.exit(75)", 75),
        ("sys.exit(3)", "signal.signal(15, signal.SIG_IGN); time.sleep(60)", 3),
    ],
)
def test_its_status_is_that_of_the_worker_that_failed(own, others, status):
    code = (
        "import json, os, signal, sys, time\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"if index == 1: {own}\n"
        f"{others}"
    )
    began = time.monotonic()
    with pytest.raises(launch.WorkerError, match="of all: ") as raised:
        launch.run(config(code, "--grace=0.5"))
    assert raised.value.exit_status == status
    assert time.monotonic() - began < 20


def test_a_signal_is_passed_on_to_all_workers_once(capsys):
    code = (
        "import json, os, signal, sys, time\n"
        "signal.signal(15, lambda *_: (print('stopped', flush=True), sys.exit(75)))\n"
        "time.sleep(1)\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "if index == 1: os.kill(os.getppid(), 15)\n"
        "time.sleep(30)"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    began = time.monotonic()
    with pytest.raises(launch.WorkerError, match="75, 75") as raised:
        launch.run(config(code))
    assert raised.value.exit_status == 75
    assert sorted(capsys.readouterr().out.splitlines()) == ["[0] stopped", "[1] stopped"]
    assert time.monotonic() - began < 20
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_reaches_a_program_that_a_shell_runs(capsys):
    """The shell is gone at once; the program has time to save, and isn't left over."""
    code = (
        "import os, signal, sys, time\n"
        "def save(*_): time.sleep(0.5); print('saved', flush=True); sys.exit(75)\n"
        "signal.signal(15, save)\n"
        "time.sleep(0.5)\n"
        f"if '\"index\": 1' in os.environ['TF_CONFIG']: os.kill({os.getpid()}, 15)\n"
        "time.sleep(8)"
    )
    shell = ["sh", "-c", f'{sys.executable} -c "$0"; echo over', code]
    began = time.monotonic()
    with pytest.raises(launch.WorkerError, match="-15, -15") as raised:
        launch.run(cli.parse(launch.Config, ["--", *shell]))
    assert raised.value.exit_status == 75
    assert sorted(capsys.readouterr().out.splitlines()) == ["[0] saved", "[1] saved"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a program to start"),
        (["-n", "0", "--", "python"], "--workers above 0"),
        (["--", "/no/such/program"], "Can't start '/no/such/program'"),
    ],
)
def test_mistakes(words, said):
    with pytest.raises(errors.UserError, match=said):
        launch.run(cli.parse(launch.Config, words))


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(launch.hardware, "cuda_devices", lambda: ["x"] * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [launch._gpus(i, 2)["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["4,5", "6,7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch._gpus(2, 3)["CUDA_VISIBLE_DEVICES"] == "2"
    with pytest.raises(errors.UserError, match="each of 4 GPUs"):
        launch._gpus(0, 5)


@pytest.mark.slow
def test_the_sum_over_workers_is_timed(capsys):
    script = pathlib.Path(__file__).parents[2] / "scripts" / "all_reduce.py"
    launch.run(cli.parse(launch.Config, ["-n", "2", "--", "python", str(script)]))
    lines = [x for x in capsys.readouterr().out.splitlines() if "replicas" in x]
    assert [line.split(":")[0] for line in lines] == [
        f"[0] 2 replicas, {size} MB" for size in (1, 10, 100)
    ]


@pytest.mark.slow
def test_a_recipe_on_two_workers(tmp_path):
    """As the README says; the recipe itself is in tests/distribution/test_workers.py."""
    words = [sys.executable, "-m", "tfmp.recipes.resnet", "--epochs=1", f"--workdir={tmp_path}/run"]
    launch.run(cli.parse(launch.Config, ["-n", "2", "--", *words]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["workers"] == 2
    assert os.environ.get("TF_CONFIG") is None
