"""Worker processes that train together: who they are, that they agree, and that none is missed.

One process runs on each machine, or for each group of GPUs, and all run the same program. The
first one is the chief. They meet through TensorFlow's coordination service, which the chief hosts:
what they say to each other here goes through its store of keys and values, with names and time
limits, since a collective that someone doesn't join waits for ever.
"""

import atexit
import collections
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# No public way to set the time limits of the coordination service, nor to its keys and values.
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from tfmp.errors import PeerError, UserError

HEARTBEAT_S = 10  # of silence, and a worker counts as lost
GRACE_S = 20  # for a program to leave by itself once a worker is lost
LOOK_S = 2  # between two looks at the others
AGREE_S = 600  # for the slowest worker to load its data and build its model
PORT = 8888  # of a machine's first task under Slurm
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of the processes that train together.

    Attributes:
        index: Its number, counted from 0, the chief.
        addresses: host:port of all of them, in their order; empty for a program that trains alone.
        job: What TensorFlow calls its kind, "worker" or "chief".
        task: Its number among its kind.
    """

    index: int = 0
    addresses: tuple[str, ...] = ()
    job: str = "worker"
    task: int = 0

    @property
    def count(self) -> int:
        """Number of workers."""
        return max(1, len(self.addresses))

    @property
    def is_chief(self) -> bool:
        """Whether this is the one that writes results and checkpoints."""
        return self.index == 0

    def __str__(self):
        """As logs say it."""
        if self.count == 1:
            return "the only worker"
        part = "chief, writes the results" if self.is_chief else f"{name(0)} is the chief"
        return f"{name(self.index)} of {self.count}, {self.addresses[self.index]} ({part})"


ALONE = Worker()

# A process joins once: TensorFlow has no way back.
_joined: dict[Worker, tf.distribute.MultiWorkerMirroredStrategy] = {}
_times: collections.Counter = collections.Counter()  # how often a topic came up


def name(index: int) -> str:
    """What logs and errors call a worker."""
    return f"worker {index}"


# --- who is who


def in_environment() -> Worker | None:
    """This process as TF_CONFIG, or Slurm's variables of a step, describe it; None: they don't.

    Raises:
        UserError: They can't be read.
    """
    if os.environ.get("TF_CONFIG"):
        return _from_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _from_slurm()
    return None


def _from_tf_config(text):
    example = (
        '{"cluster": {"worker": ["host0:8888", "host1:8888"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        found = json.loads(text)
        jobs, job, task = found["cluster"], found["task"]["type"], int(found["task"]["index"])
        if set(jobs) - {"chief", "worker"}:
            raise ValueError(f"jobs {', '.join(jobs)}; chief and worker only can train")
        hosts = {kind: list(jobs.get(kind, [])) for kind in ("chief", "worker")}
        addresses = [address for kind in hosts.values() for address in kind]
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not 0 < int(port) < 2**16:
                raise ValueError(f"{address!r} is not host:port")
        if len(set(addresses)) < len(addresses):
            raise ValueError("an address is there twice")
        if not 0 <= task < len(hosts.get(job, [])):
            raise ValueError(f"the cluster has no task {job} {task}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"Expected TF_CONFIG like {example}. Received: {text} ({why}).") from None
    index = task + (len(hosts["chief"]) if job == "worker" else 0)
    return Worker(index, tuple(addresses), job, task)


def _from_slurm():
    """By SlurmClusterResolver, which is told nothing of GPUs: Slurm itself shares them out."""
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=PORT, gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False
        )
        addresses = tuple(resolver.cluster_spec().job_tasks("worker"))
        if resolver.task_id is None:
            raise ValueError("SLURM_PROCID is not below SLURM_STEP_NUM_TASKS")
    except (ValueError, RuntimeError) as error:
        found = ", ".join(f"{key}={os.environ.get(key)}" for key in SLURM)
        raise UserError(
            "Expected the variables of a Slurm step, as `srun` sets them. Received: "
            f"{found} ({error})."
        ) from None
    return Worker(resolver.task_id, addresses, "worker", resolver.task_id)


# --- meeting


def connect(worker: Worker, start_timeout: float) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits for all workers and makes the strategy that joins them.

    Call it before TensorFlow looks for devices. From then on a lost worker ends this process with
    exit status 75: collectives fail, and where the program doesn't notice it is ended.

    Args:
        worker: This process.
        start_timeout: Seconds to wait for the others.

    Raises:
        UserError: The port is taken, a worker is missing, or TensorFlow had started before.
    """
    if worker in _joined:
        if _over.is_set():
            _watch(worker)
        return _joined[worker]
    if context.context()._context_handle is not None:
        raise UserError("Workers have to be joined before TensorFlow's first operation.")
    _meet(worker, start_timeout)
    # As MultiWorkerMirroredStrategy would configure it, but for the time limits.
    jobs: dict[str, list[str]] = {worker.job: []}
    for index, address in enumerate(worker.addresses):
        jobs.setdefault(_job(worker, index), []).append(address)
    leader = "chief" if "chief" in jobs else "worker"
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        heartbeat_timeout_in_ms=HEARTBEAT_S * 1000,
        cluster_register_timeout_in_ms=int(start_timeout * 1000),
        shutdown_barrier_timeout_in_ms=HEARTBEAT_S * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=len(hosts))
            for job, hosts in sorted(jobs.items())
        ],
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs),
        task_type=worker.job,
        task_id=worker.task,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    with _limit(start_timeout + HEARTBEAT_S, UserError.exit_status, "the workers didn't join"):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    atexit.register(_leave_early)
    _watch(worker)
    _joined[worker] = strategy
    return strategy


def _job(worker, index):
    """The kind of a worker: a chief of a kind of its own is the first."""
    own = worker.job == "chief" or worker.index != worker.task
    return "chief" if own and index == 0 else "worker"


def _meet(worker, start_timeout):
    """Waits until every worker listens at its address; TensorFlow would wait for ever."""
    port = int(worker.addresses[worker.index].rpartition(":")[2])
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{name(worker.index)} can't listen at {worker.addresses[worker.index]}: {error}. "
                "Choose another port, or end what uses it."
            ) from None
        own.listen(worker.count)
        end = time.monotonic() + start_timeout
        missing = [i for i in range(worker.count) if i != worker.index]
        while missing := [i for i in missing if not _listens(worker.addresses[i])]:
            if time.monotonic() > end:
                names = ", ".join(f"{name(i)} ({worker.addresses[i]})" for i in missing)
                raise UserError(
                    f"Waited {start_timeout:g} s for {names}. Start all {worker.count} workers, "
                    "or give them more --start_timeout."
                )
            time.sleep(0.2)


def _listens(address):
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), port), 2):
        return True
    return False


@contextlib.contextmanager
def _limit(seconds, status, message):
    """Ends the process, whatever it does, if what runs inside takes longer."""
    timer = threading.Timer(seconds, _end, (status, message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(status, message):
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


# --- losing

_over = threading.Event()


def _watch(worker):
    """Looks at the others from a thread, since a program in a collective hears nothing else."""
    _over.clear()
    jobs: dict[str, int] = {}
    for index in range(worker.count):
        jobs[_job(worker, index)] = jobs.get(_job(worker, index), 0) + 1
    seen = [time.monotonic()]

    def look():
        while not _over.wait(LOOK_S):
            try:
                lost = [x for x in context.context().get_task_states(list(jobs.items())) if x]
            except tf.errors.OpError as error:
                lost = [error]
            if not lost:
                seen[0] = time.monotonic()

    def judge():
        while not _over.wait(LOOK_S):
            if time.monotonic() - seen[0] > HEARTBEAT_S + GRACE_S:
                _end(PeerError.exit_status, LOST)

    for run in (look, judge):
        threading.Thread(target=run, daemon=True, name=f"workers: {run.__name__}").start()


LOST = (
    "a worker was lost, or ended with an error of its own (see its log). Start all workers again "
    "with the same flags and --resume."
)


def is_joined() -> bool:
    """Whether others wait for this process: it can't leave in the ordinary way then.

    TensorFlow's own clean-up would wait for them, for ever. A process that is gone at once is
    missed within HEARTBEAT_S.
    """
    return bool(_joined) and not _over.is_set()


def _leave_early():
    """Ends a process that crashed, after its traceback."""
    if is_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


@contextlib.contextmanager
def naming_lost_peers(worker: Worker):
    """Turns TensorFlow's error of a collective that a worker was missing from into one of ours.

    Raises:
        PeerError: A worker was lost.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if worker.count == 1:
            raise
        raise PeerError(f"{name(worker.index)}: {LOST}") from error
    except (tf.errors.InternalError, tf.errors.DeadlineExceededError) as error:
        if worker.count == 1 or "ollective" not in error.message:
            raise
        raise PeerError(f"{name(worker.index)}: {LOST}") from error


# --- agreeing


def agree(worker: Worker, topic: str, facts: dict[str, Any], hint: str = "") -> None:
    """Compares facts that all workers have to share; a worker that differs is named.

    Args:
        worker: This process.
        topic: A name for this comparison; all workers make the same ones in the same order.
        facts: What JSON can hold, by the names that the error uses.
        hint: What the error tells the user to do.

    Raises:
        UserError: A worker differs from the chief.
        PeerError: A worker didn't say anything.
    """
    if worker.count == 1:
        return
    facts = json.loads(json.dumps(facts))
    topic = _once(topic)
    _put(f"{topic}/{worker.index}", facts)
    all_facts = [_get(worker, f"{topic}/{i}") for i in range(worker.count)]
    different = [
        f"{key} is {other.get(key)!r} on {name(index)} and {all_facts[0].get(key)!r} on the chief"
        for index, other in enumerate(all_facts)
        for key in all_facts[0]
        if other.get(key) != all_facts[0][key]
    ]
    if different:
        _part(worker, topic)
        raise UserError(f"The workers differ: {'; '.join(different)}. {hint}".strip())


def chief_first(worker: Worker, topic: str, function: Callable[[], str]) -> str:
    """What a function returns on the chief, which alone runs it.

    Args:
        worker: This process.
        topic: A name for it, as for `agree`.
        function: Function of no argument that returns a string.

    Raises:
        UserError: As the chief's function did, on all workers.
    """
    if worker.count == 1:
        return function()
    topic = _once(topic)
    if worker.is_chief:
        try:
            value = function()
        except UserError as error:
            _put(topic, {"error": str(error)})
            _part(worker, topic)
            raise
        _put(topic, {"value": value})
        return value
    said = _get(worker, topic)
    if "error" in said:
        _part(worker, topic)
        raise UserError(said["error"])
    return said["value"]


def wait(worker: Worker, topic: str) -> None:
    """Waits until all workers have come here.

    Raises:
        PeerError: One didn't.
    """
    agree(worker, topic, {})


def finish(worker: Worker) -> None:
    """Waits for all at the end of a run; after it a worker may leave."""
    if worker.count == 1:
        return
    wait(worker, "finish")
    _over.set()
    _part(worker, _once("left"))


def _part(worker, topic):
    """What the chief does last: it hosts what the others still read from."""
    if not worker.is_chief:
        _put(f"{topic}/parted/{worker.index}", True)
        return
    for index in range(1, worker.count):
        _get(worker, f"{topic}/parted/{index}")


def _once(topic):
    """A key that was not used before: values don't change."""
    _times[topic] += 1
    return f"{topic}/{_times[topic]}"


def _put(key, value):
    context.context().set_config_key_value(f"tfmp/{key}", json.dumps(value))


def _get(worker, key):
    end = time.monotonic() + AGREE_S
    while True:
        try:
            # Short, so that a signal is heard.
            return json.loads(context.context().get_config_key_value(f"tfmp/{key}", 1000))
        except tf.errors.DeadlineExceededError:
            if time.monotonic() > end:
                raise PeerError(f"Waited {AGREE_S} s for {key!r}: {LOST}") from None
        except tf.errors.OpError as error:
            raise PeerError(f"{name(worker.index)}: {LOST}") from error
