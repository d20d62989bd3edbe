"""Which of the workers this process is, by TF_CONFIG or Slurm's variables."""

import dataclasses
import json
import os

import tensorflow as tf

from tfmp.errors import UserError

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


def name(index: int) -> str:
    """What logs and errors call a worker."""
    return f"worker {index}"


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
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
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
