"""Who is which worker, and the mistakes that are seen before any is joined."""

import random
import socket
import threading
import time

import pytest
import tensorflow as tf

from tfmp import distribution, errors, workers
from tfmp.commands import launch
from tfmp.workers import identity, joining, talking


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"cluster": {"worker": ["a:1"]}}', "no 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "worker 1"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": Infinity}}',
            "infinity",
        ),
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
    ports = launch.free_ports(2)
    worker = workers.Worker(0, tuple(f"localhost:{port}" for port in ports))
    with pytest.raises(errors.UserError, match=rf"Waited 0.5 s for worker 1 \(.*:{ports[1]}\)"):
        joining._meet(worker, 0.5)
    with socket.socket() as other:
        other.bind(("", ports[0]))
        other.listen()
        with pytest.raises(errors.UserError, match=rf"worker 0 can't listen at .*:{ports[0]}"):
            joining._meet(worker, 0.5)


@pytest.mark.parametrize(("gpus", "name"), [([], "AUTO"), (["GPU:0"], "NCCL")])
def test_workers_with_gpus_add_up_by_nccl(monkeypatch, gpus, name):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    assert joining.communication().implementation.name == name


def test_multi_worker_without_workers(monkeypatch):
    for key in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(errors.UserError, match=r"expects TF_CONFIG.*python -m tfmp launch"):
        distribution.resolve("multi_worker")


def test_a_strategy_of_one_worker_ends_in_the_ordinary_way(monkeypatch):
    """Else a run that is done leaves with exit status 1."""
    worker = workers.Worker(0, ("localhost:8888",))
    monkeypatch.setattr(joining, "_joined", {worker: None})
    monkeypatch.setattr(joining, "_over", threading.Event())
    assert workers.is_joined()
    workers.finish(worker)
    assert not workers.is_joined()


class Store:
    """The chief's keys and values, for workers that are threads."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def put(self, key, value):
        with self.changed:
            if key in self.values:
                raise errors.PeerError(key)
            self.values[key] = value
            self.changed.notify_all()

    def get_once(self, key, timeout_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_ms / 1000):
                raise tf.errors.DeadlineExceededError(None, None, key)
            return self.values[key]

    def get(self, worker, key):
        return self.get_once(key, 5000)


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_behind_one_step_whenever_any_is_asked(monkeypatch, seed):
    """Also where hosts run ahead of their devices: here by up to three steps."""
    count, store, generator = 3, Store(), random.Random(seed)
    for name in ("put", "get", "get_once"):
        monkeypatch.setattr(talking, name, getattr(store, name))
    monkeypatch.setattr(talking, "once", lambda topic: topic)
    asked = {generator.randrange(count): generator.randrange(40) for _ in range(2)}
    delays = [generator.random() / 500 for _ in range(count)]
    collective, ended = threading.Barrier(count, timeout=5), {}

    def train(index):
        worker = workers.Worker(index, tuple(f"host{i}:1" for i in range(count)))
        stop = workers.Stop(worker, 0)
        for step in range(40):
            if asked.get(index) == step:
                stop.ask("SIGTERM")
            if stop.is_due(step, begins=1):
                break
            time.sleep(delays[index])
            if step % 4 == 3:
                collective.wait()
        else:
            step = 40
            stop.close()
        due = stop.is_due(step)
        ended[index] = step, due, stop.reason if due else None

    threads = [threading.Thread(target=train, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == count and len(set(ended.values())) == 1, ended
    (step, due, reason), *_ = ended.values()
    if due:
        assert min(asked.values()) <= step and reason in {f"SIGTERM to worker {i}" for i in asked}
    else:  # those asked were too late
        assert step == 40


def test_who_trains_alone_stops_at_once():
    stop = workers.Stop(workers.ALONE, 0)
    assert not stop.is_due(3, begins=1)
    stop.ask("SIGINT")
    assert stop.is_due(4, begins=1) and stop.reason == "SIGINT"
