"""Worker processes train as one process with as many replicas does, and none outlives another."""

import json
import os
import pathlib
import random
import re
import signal
import time

import fresh
import numpy as np
import pytest

from tfmp import errors
from tfmp.commands import launch

PROGRAMS = pathlib.Path(__file__).parent / "programs.py"
TIMEOUT = 120  # seconds, and all that hangs is killed
SEED = int(os.environ.get("TFMP_TEST_SEED", time.time_ns() % 10**9))
FLAGS = [
    *["--model=tiny", "--policy=mixed_float16", "--jit_compile=false", "--epochs=2"],
    *["--batch_size=64", "--warmup_epochs=1", "--deterministic", "--seed=7", "--ema=0.9"],
    *[
        "--save_every_steps=5",
        "--mixup=0.1",
        "--measure_inference=false",
        "--start_timeout=60",
        "--early_stopping=9",
    ],
]
STEPS = 20  # of an epoch


def tf_config(index, ports):
    """TF_CONFIG of a worker on this machine."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


def run_workers(name, *argument_lists):
    """Runs one of `programs.py` on as many workers as there are lists of its arguments."""
    ports = launch.free_ports(len(argument_lists))
    environments = [
        os.environ | {"TF_CONFIG": tf_config(index, ports)} for index in range(len(ports))
    ]
    programs = [(PROGRAMS, name, *arguments) for arguments in argument_lists]
    return fresh.run_together(programs, envs=environments, timeout=TIMEOUT)


# --- one verdict, equal weights

CASES = {2: ("float32", "overflows", "xla", "steps"), 3: ("float32", "overflows")}
EACH_CASE = [(count, case) for count, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_program):
    """Folder of what workers, and one process with as many replicas, ended with: by count."""
    folders = {}
    for count in CASES:
        folder = folders[count] = tmp_path_factory.mktemp("engine")
        alone = run_program("engine", folder, replicas=count)
        assert alone.returncode == 0, alone
        ended = run_workers("engine", *[[folder]] * count)
        codes = [x.returncode for x in ended]
        assert codes == [0] * count, "\n".join(f"{x.stdout}\n{x.stderr}" for x in ended)
        said = [json.loads(x.stdout.splitlines()[-1]) for x in ended]
        (folder / "refused.json").write_text(json.dumps(said))
    return folders


@pytest.mark.parametrize(("count", "case"), EACH_CASE)
def test_workers_equal_one_process_with_as_many_replicas(trained, count, case):
    alone, chief, *others = (
        np.load(trained[count] / f"{case}-{who}.npz") for who in ("alone", *range(count))
    )
    assert len(alone.files) > 10
    for name in alone.files:
        for other in others:
            np.testing.assert_array_equal(chief[name], other[name], err_msg=name)
        if name.startswith("log "):
            np.testing.assert_allclose(alone[name], chief[name], rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(alone[name], chief[name], err_msg=name)


@pytest.mark.parametrize("count", CASES)
def test_an_overflow_on_each_worker_in_turn_is_skipped_by_all(trained, count):
    for who in range(count):
        found = np.load(trained[count] / f"overflows-{who}.npz")
        ends = {name.split("/")[-1]: found[name] for name in found.files}
        assert ends["skipped_steps"] == 2 * count  # of each worker once an epoch
        assert ends["dynamic_scale"] == 2.0**8 / 2 ** (2 * count)  # halved once for each
        assert ends["iteration"] == 2 * 5 - 2 * count
        assert all(np.isfinite(found[x]).all() for x in found.files if not x.startswith("log "))


@pytest.mark.parametrize("count", CASES)
def test_a_worker_that_differs_is_refused_at_the_start_by_name(trained, count):
    said = json.loads((trained[count] / "refused.json").read_text())
    for each in said:
        seed, batch_size, version, indivisible = each
        begin, end = "2: The workers differ: ", ". Start all with the same flags and packages."
        assert seed == f"{begin}--seed is 8 on worker 1 and 0 on the chief{end}"
        assert batch_size == f"{begin}--batch_size is 24 on worker 1 and 48 on the chief{end}"
        assert version.startswith(f"{begin}the version of tfmp is '0.0.1' on worker 1 and '")
        assert indivisible.startswith(f"2: Expected a batch size that {count} replicas can share")


# --- a recipe, killed and stopped


def run_all(*todo, other=None):
    """Runs the recipe so many times on two workers; `other` is what worker 1 does, if not that."""
    return run_workers("recipes", [json.dumps(todo)], [json.dumps(other or todo)])


def run(folder, *more, **settings):
    """A run of the recipe as `programs.py` wants it."""
    return {"flags": [*FLAGS, f"--workdir={folder}", *more], **settings}


def kill(folder, victims, seed, between=(), last=(), others_last=()):
    """Kills a worker in each of several runs, at a random step; the next launch resumes it.

    Args:
        folder: Runs get the folders `killed0`, `killed1`, ... in it.
        victims: A worker for each run.
        seed: Decides the steps.
        between: Runs behind the first resumed one.
        last: Runs at the very end.
        others_last: What worker 1 does in place of `last`.

    Returns:
        A list of what the workers of each launch ended with.
    """
    generator, launches = random.Random(seed), []
    todo: list = []
    for number, victim in enumerate(victims):
        step = generator.randrange(1, 2 * STEPS)
        print(f"TFMP_TEST_SEED={seed}: worker {victim} is killed before step {step}")
        killed = folder / f"killed{number}"
        launches.append(run_all(*todo, run(killed, signal="SIGKILL", step=step, worker=victim)))
        todo, between = [run(killed, "--resume"), *between], ()
    launches.append(run_all(*todo, *last, other=[*todo, *others_last]))
    return launches


def assert_others_left(ended, victim):
    """Asserts that who lost a worker said so, and left in time; returns after how many seconds."""
    assert ended[victim].returncode == -signal.SIGKILL, ended
    other = ended[1 - victim]
    assert other.returncode == errors.PeerError.exit_status == 75, ended
    assert "a worker was lost" in other.stderr.splitlines()[-1], ended
    seconds = other.ended - ended[victim].ended
    assert seconds < 60, ended
    return seconds


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_program):
    """Folder of runs (whole, killed, stopped; resumed), and what the workers ended with."""
    folder = tmp_path_factory.mktemp("runs")
    stopped = folder / "stopped"
    launches = kill(
        folder,
        (1, 0),
        SEED,
        between=[
            run(stopped, signal="SIGTERM", step=4, worker=1),
            run(stopped, "--resume"),
            run(stopped, "--resume"),
        ],
        last=[run(folder / "apart")],
        others_last=[run(folder / "killed0")],
    )
    alone = run_program("recipes", json.dumps([run(folder / "whole", "--strategy=mirrored")]))
    assert alone.returncode == 0, alone
    return folder, launches


def weights(folder):
    """All variables of the last checkpoint but the seconds."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    names = reader.get_variable_to_shape_map()
    skipped = ("seconds", "joules", "save_counter", "_CHECKPOINTABLE", "metrics")
    return {n: reader.get_tensor(n) for n in names if not n.startswith(skipped)}


def assert_same_weights(one, other):
    """Asserts that two runs ended with the same weights, bit for bit."""
    whole, resumed = weights(one), weights(other)
    assert whole.keys() == resumed.keys() and len(whole) > 20
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)


@pytest.mark.parametrize(("launch", "victim"), [(0, 1), (1, 0)])
def test_a_killed_worker_ends_the_other(runs, launch, victim):
    assert_others_left(runs[1][launch], victim)


@pytest.mark.parametrize("name", ["killed0", "killed1", "stopped"])
def test_restarted_workers_end_with_the_weights_of_an_uninterrupted_run(runs, name):
    assert_same_weights(runs[0] / "whole", runs[0] / name)


def test_a_signal_to_one_worker_stops_all_behind_one_step(runs):
    for ended in runs[1][1]:
        (said,) = (x for x in ended.stderr.splitlines() if x.startswith("error: Stopped"))
        found = re.match(r"error: Stopped by SIGTERM to worker 1 after step (\d+), saved", said)
        assert found and 4 <= int(found[1]) < 2 * STEPS, said


def test_a_finished_run_that_is_to_go_on_is_done_on_all(runs):
    for ended in runs[1][1]:
        (said,) = (x for x in ended.stderr.splitlines() if x.startswith("note: "))
        assert said.endswith("stopped holds a finished run: there is nothing left to do.")


def test_another_checkpoint_is_refused_by_name(runs):
    for ended in runs[1][2]:
        assert ended.returncode == 2, ended.stderr
        said = ended.stderr.splitlines()[-1]
        assert said.startswith("error: The workers differ: the step is 40 on worker 1 and 0 on the")


def test_what_workers_say_and_write(runs):
    folder, launches = runs
    results = json.loads((folder / "killed1" / "results.json").read_text())
    assert (results["workers"], results["replicas"]) == (2, 2)
    whole = json.loads((folder / "whole" / "results.json").read_text())
    assert results["final"]["test_loss"] == pytest.approx(whole["final"]["test_loss"], rel=1e-6)
    rows = (folder / "killed1" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    chief, other = launches[2]
    assert "worker 0 of 2" in chief.stdout and "Epoch 2/2" in chief.stdout
    assert "worker 1 of 2" in other.stdout and "Epoch 2/2" not in other.stdout
    assert all("by element: " in each.stdout for each in launches[2])


@pytest.mark.slow
def test_five_kills_of_each(tmp_path, run_program):
    victims = (1, 0) * 5
    launches = kill(tmp_path, victims, SEED)
    seconds = [assert_others_left(e, v) for e, v in zip(launches, victims, strict=False)]
    print("seconds until the other had left:", " ".join(f"{x:.1f}" for x in seconds))
    assert [ended.returncode for ended in launches[-1]] == [0, 0]
    assert run_program("recipes", json.dumps([run(tmp_path / "whole", "--strategy=mirrored")]))
    for number in range(len(victims)):
        assert_same_weights(tmp_path / "whole", tmp_path / f"killed{number}")
