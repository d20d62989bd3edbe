"""Worker processes train as one process with as many replicas does, and none outlives another."""

import json
import os
import pathlib
import random
import signal
import socket
import time

import fresh
import numpy as np
import pytest

from tfmp import errors, workers
from tfmp.workers import identity, joining

PROGRAMS = pathlib.Path(__file__).parent / "programs.py"
TIMEOUT = 120  # seconds, and all that hangs is killed
SEED = int(os.environ.get("TFMP_TEST_SEED", time.time_ns() % 10**9))
FLAGS = [
    *["--model=tiny", "--policy=mixed_float16", "--jit_compile=false", "--epochs=2"],
    *["--batch_size=64", "--warmup_epochs=1", "--deterministic", "--seed=7", "--ema=0.9"],
    *["--save_every_steps=5", "--mixup=0.1", "--measure_inference=false", "--start_timeout=60"],
]
STEPS = 20  # of an epoch


def free_ports(count):
    """Ports that nothing listens at, as far as one can know."""
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


def tf_config(index, ports):
    """TF_CONFIG of a worker on this machine."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


def run_workers(name, *argument_lists):
    """Runs one of `programs.py` on as many workers as there are lists of its arguments."""
    ports = free_ports(len(argument_lists))
    environments = [
        os.environ | {"TF_CONFIG": tf_config(index, ports)} for index in range(len(ports))
    ]
    programs = [(PROGRAMS, name, *arguments) for arguments in argument_lists]
    return fresh.run_together(programs, envs=environments, timeout=TIMEOUT)


# --- one verdict, equal weights

CASES = ("float32", "xla", "steps", "overflow0", "overflow1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_program):
    """Folder of what two workers, and one process with two replicas, ended with."""
    folder = tmp_path_factory.mktemp("engine")
    alone = run_program("engine", folder)
    assert alone.returncode == 0, alone
    ended = run_workers("engine", [folder], [folder])
    assert [x.returncode for x in ended] == [0, 0], ended
    (folder / "errors.json").write_text(
        json.dumps([json.loads(x.stdout.splitlines()[-1]) for x in ended])
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one_process_with_two_replicas(trained, case):
    alone, chief, other = (np.load(trained / f"{case}-{who}.npz") for who in ("alone", 0, 1))
    assert len(alone.files) > 10
    for name in alone.files:
        np.testing.assert_array_equal(chief[name], other[name], err_msg=name)
        if name.startswith("log "):
            np.testing.assert_allclose(alone[name], chief[name], rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(alone[name], chief[name], err_msg=name)


@pytest.mark.parametrize("case", ["overflow0", "overflow1"])
def test_an_overflow_on_one_worker_is_skipped_by_both(trained, case):
    for who in (0, 1):
        found = np.load(trained / f"{case}-{who}.npz")
        ends = {name.split("/")[-1]: found[name] for name in found.files}
        assert ends["skipped_steps"] == 2  # once an epoch
        assert ends["dynamic_scale"] == 2.0**8 / 4  # halved once for each
        assert ends["iteration"] == 2 * 5 - 2
        assert all(np.isfinite(found[x]).all() for x in found.files if not x.startswith("log "))


def test_who_differs_is_named(trained):
    for said in json.loads((trained / "errors.json").read_text()):
        assert said == ["The workers differ: --seed is 1 on worker 1 and 0 on the chief. Mend it."]


# --- a recipe, killed


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_program):
    """Folder of runs: whole in one process; killed and resumed; and what their workers said."""
    folder = tmp_path_factory.mktemp("runs")
    steps = random.Random(SEED).choices(range(1, 2 * STEPS), k=2)
    print(f"TFMP_TEST_SEED={SEED}: killed before steps {steps}")

    def run(name, *more, **settings):
        return {"flags": [*FLAGS, f"--workdir={folder / name}", *more], **settings}

    def run_all(*todo, other=None):
        return run_workers("recipes", [json.dumps(todo)], [json.dumps(other or todo)])

    kills = [
        {"signal": "SIGKILL", "step": step, "worker": who}
        for who, step in zip((1, 0), steps, strict=True)
    ]
    began = time.monotonic()
    ended = [
        run_all(run("killed1", **kills[0])),
        run_all(run("killed1", "--resume"), run("killed0", **kills[1])),
        run_all(
            run("killed0", "--resume"),
            run("differs"),
            other=[run("killed0", "--resume"), run("differs", "--seed=8")],
        ),
    ]
    print(f"{time.monotonic() - began:.1f} s")
    alone = run_program("recipes", json.dumps([run("whole", "--strategy=mirrored")]))
    assert alone.returncode == 0, alone
    return folder, ended


def weights(folder):
    """All variables of the last checkpoint but the seconds."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    names = reader.get_variable_to_shape_map()
    skipped = ("seconds", "joules", "save_counter", "_CHECKPOINTABLE", "metrics")
    return {n: reader.get_tensor(n) for n in names if not n.startswith(skipped)}


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_worker_ends_the_other(runs, victim):
    ended = runs[1][0 if victim else 1]
    assert ended[victim].returncode == -signal.SIGKILL, ended
    assert ended[1 - victim].returncode == errors.PeerError.exit_status == 75, ended
    assert "a worker was lost" in ended[1 - victim].stderr.splitlines()[-1], ended


@pytest.mark.parametrize("name", ["killed1", "killed0"])
def test_restarted_workers_end_with_the_weights_of_an_uninterrupted_run(runs, name):
    whole, resumed = weights(runs[0] / "whole"), weights(runs[0] / name)
    assert whole.keys() == resumed.keys() and len(whole) > 20
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)


def test_what_workers_say_and_write(runs):
    folder, ended = runs
    results = json.loads((folder / "killed0" / "results.json").read_text())
    assert (results["workers"], results["replicas"]) == (2, 2)
    whole = json.loads((folder / "whole" / "results.json").read_text())
    assert results["final"]["test_loss"] == pytest.approx(whole["final"]["test_loss"], rel=1e-6)
    rows = (folder / "killed0" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    chief, other = ended[2]
    assert chief.returncode == other.returncode == 2, ended[2]
    for one in ended[2]:
        said = one.stderr.splitlines()[-1]
        assert said.startswith("error: The workers differ: --seed is 8 on worker 1 and 7 on"), said
    assert not (folder / "differs").exists()
    assert "worker 0 of 2" in chief.stdout and "Epoch 2/2" in chief.stdout
    assert "worker 1 of 2" in other.stdout and "Epoch 2/2" not in other.stdout


# --- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"cluster": {"worker": ["a:1"]}}', "no 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "worker 1"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "'a' is not"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "can train"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "twice",
        ),
    ],
)
def test_a_malformed_tf_config(monkeypatch, text, said):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(errors.UserError, match=f"Expected TF_CONFIG like .*{said}"):
        workers.in_environment()


def test_a_chief_of_its_own_kind_is_the_first(monkeypatch):
    cluster = '{"cluster": {"worker": ["a:1", "b:1"], "chief": ["c:1"]}, "task": '
    for job, task, index in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", f'{cluster}{{"type": "{job}", "index": {task}}}}}')
        found = workers.in_environment()
        assert found == workers.Worker(index, ("c:1", "a:1", "b:1"), job, task)
        assert found.is_chief == (job == "chief")


def test_slurm(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    step = ("5", "6", "node[1-3]", "2(x3)")
    for key, value in zip(identity.SLURM, step, strict=True):
        monkeypatch.setenv(key, value)
    hosts = [f"node{n}:{port}" for n in (1, 2, 3) for port in (8888, 8889)]
    assert workers.in_environment() == workers.Worker(5, tuple(hosts), "worker", 5)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-")
    with pytest.raises(errors.UserError, match=r"variables of a Slurm step.*node\[1-"):
        workers.in_environment()


def test_a_missing_worker_and_a_port_that_is_taken():
    ports = free_ports(2)
    worker = workers.Worker(0, tuple(f"localhost:{port}" for port in ports))
    with pytest.raises(errors.UserError, match=rf"Waited 0.5 s for worker 1 \(.*:{ports[1]}\)"):
        joining._meet(worker, 0.5)
    with socket.socket() as other:
        other.bind(("", ports[0]))
        other.listen()
        with pytest.raises(errors.UserError, match=rf"worker 0 can't listen at .*:{ports[0]}"):
            joining._meet(worker, 0.5)


def test_multi_worker_without_workers(monkeypatch):
    from tfmp import distribution

    for key in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(errors.UserError, match=r"expects TF_CONFIG.*python -m tfmp launch"):
        distribution.resolve("multi_worker")
