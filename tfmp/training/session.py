"""What a run stands on: its folder, its seeds, its precision and its device."""

import dataclasses
import importlib.util
import json
import pathlib

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled  # no public one

from tfmp import compile_cache, distribution, files, hardware, policies, provenance, workers
from tfmp import power as gpu_power
from tfmp.errors import FinishedError, UserError
from tfmp.training import fused, tpu

# Settings that decide nothing of what is trained.
FREE_SETTINGS = {"workdir", "resume", "save_every_steps", "tensorboard", "data_dir", "manual_dir"}
FREE_SETTINGS |= {"compile_cache", "measure_inference", "price_per_hour", "start_timeout"}


# Settings that may differ from worker to worker: where things are on its machine.
LOCAL_SETTINGS = {"workdir", "data_dir", "manual_dir", "compile_cache", "price_per_hour"}


@dataclasses.dataclass(frozen=True)
class Session:
    """What is really in force for a run.

    Attributes:
        name: The recipe's name.
        workdir: Folder of the run's files.
        device: A `tfmp.hardware.Device`.
        policy: Name of the Keras dtype policy.
        policy_reason: Why that policy, one sentence.
        deterministic: Whether TensorFlow's operations are; once on, on for the whole process.
        jit_compile: Whether XLA compiles the training step.
        fused_layers: Whether layers train fused; see `tfmp.training.fused`.
        tf32: Whether float32 matrix products use TensorFloat-32.
        strategy: The `tf.distribute.Strategy` to make model and optimizer in.
        compile_cache: The `tfmp.compile_cache.Cache` of XLA's programs; None: there is none.
    """

    name: str
    workdir: pathlib.Path
    device: hardware.Device
    policy: str
    policy_reason: str
    deterministic: bool
    jit_compile: bool
    fused_layers: bool
    tf32: bool
    strategy: tf.distribute.Strategy
    compile_cache: compile_cache.Cache | None

    @property
    def replicas(self) -> int:
        """Copies of the model that train together."""
        return self.strategy.num_replicas_in_sync

    @property
    def worker(self) -> workers.Worker:
        """This process among those that train together."""
        return distribution.worker(self.strategy)

    @property
    def devices(self) -> int:
        """Devices that they train on: several replicas may share one."""
        return min(self.replicas, self.device.count * self.worker.count)

    def power(self, gpus=None):
        """A `tfmp.power.Sampler` of the first GPUs, by default all that train; for `with`."""
        found = gpu_power.cuda_gpus() if self.device.kind == "gpu" else []
        return gpu_power.Sampler(found[: gpus or self.devices])


def start(name, config):
    """Opens the run's folder and sets the compile cache, seeds, determinism and TF32.

    Args:
        name: The recipe's name.
        config: A `tfmp.training.TrainingConfig`.

    Returns:
        A `Session`.

    Raises:
        FinishedError: With `resume`, the run has ended already.
        UserError: The folder holds another run, the policy is unknown, the GPUs are of different
            kinds, or the replicas can't share the batch evenly.
    """
    if config.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install tensorboard."
        )
    # Before anything looks for devices; determinism and TF32 are no part of an entry's own name.
    cache = compile_cache.start(
        config.compile_cache, deterministic=config.deterministic, tf32=config.tf32
    )
    strategy = distribution.resolve(config.strategy, config.start_timeout)
    worker = distribution.worker(strategy)
    resolved = policies.resolve(config.policy)
    if distribution.is_tpu(strategy):
        tpu.check(config)
        resolved = tpu.policy(resolved)
    _compare(worker, name, config, resolved.name, strategy)
    distribution.check_batch_size(
        config.batch_size, strategy.num_replicas_in_sync, config.gradient_accumulation_steps
    )
    if config.trace_every and worker.count > 1:
        raise UserError(
            "--trace_every follows the replicas of one process. Received several workers. Trace a "
            "run of one."
        )
    folder = workers.chief_first(worker, "workdir", lambda: str(open_workdir(name, config)))
    # Each may know the same folder by another name; by default it has the chief's clock in it.
    workdir = pathlib.Path(folder if worker.is_chief or not config.workdir else config.workdir)
    if config.resume and _is_finished(worker, workdir):
        workers.finish(worker)
        raise FinishedError(f"{workdir} holds a finished run: there is nothing left to do.")
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    hardware.set_tf32(config.tf32)
    hardware.reset_peak_memory()
    device = hardware.describe()
    jit_compile = compiles(config.jit_compile, device, resolved.name)
    if config.remat and not jit_compile:
        raise UserError("--remat needs XLA, which is off here: add --jit_compile=true.")
    return Session(
        name=name,
        workdir=workdir,
        device=device,
        policy=resolved.name,
        policy_reason=resolved.reason,
        deterministic=is_op_determinism_enabled(),
        jit_compile=jit_compile,
        fused_layers=fused.is_default(jit_compile)
        if config.fused_layers == "auto"
        else config.fused_layers == "true",
        tf32=hardware.tf32_in_force(),
        strategy=strategy,
        compile_cache=cache,
    )


def _compare(worker, name, config, policy, strategy):
    """Holds the workers to the same program and settings, before they make a variable together."""
    settings = {
        f"--{key}": value
        for key, value in dataclasses.asdict(config).items()
        if key not in LOCAL_SETTINGS
    }
    versions = {f"the version of {key}": x for key, x in provenance.versions().items()}
    versions["the commit of tfmp"] = provenance.git_commit()
    devices = distribution.devices(strategy)
    facts = {
        "the recipe": name,
        "the policy": policy,
        "the number of replicas": len(devices),
        "the kind of device": tf.DeviceSpec.from_string(devices[0]).device_type,
    }
    workers.agree(
        worker,
        "settings",
        facts | settings | versions,
        "Start all with the same flags and packages.",
    )


def compiles(asked, device, policy):
    """Whether XLA compiles the training step.

    Args:
        asked: "true", "false", or "auto": on a CPU, where XLA saves conversions, for half
            precision only.
        device: A `tfmp.hardware.Device`.
        policy: Name of the Keras dtype policy.
    """
    if asked != "auto":
        return asked == "true"
    return device.kind != "cpu" or policy != "float32"


def open_workdir(name, config):
    """The run's folder: a new one, or with `resume` that of the interrupted run.

    It is made when training begins, so that a mistake in another flag leaves nothing behind.

    Args:
        name: Start of the default folder's name.
        config: A `tfmp.training.TrainingConfig`.

    Returns:
        A `pathlib.Path`.

    Raises:
        UserError: The folder can't be made, holds a run and `resume` is off, or that run had other
            settings.
    """
    workdir = files.workdir(name, config.workdir)
    try:
        found = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
        if "results.json" in found and not config.resume:
            raise UserError(
                f"{workdir} holds a finished run. Choose another --workdir, or remove the folder."
            )
        if "config.json" in found and not config.resume:
            raise UserError(
                f"{workdir} holds an interrupted run. Add --resume to go on with it, or choose "
                "another --workdir."
            )
        if "config.json" in found:
            _same_settings(json.loads((workdir / "config.json").read_text()), config, workdir)
        elif "checkpoints" in found:
            raise UserError(
                f"{workdir} holds checkpoints, but no config.json that says of what. Choose "
                "another --workdir, or remove the folder."
            )
        elif config.resume:
            print(f"note: there is no run in {workdir} to go on with; this one begins anew.")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Can't use --workdir={workdir}: {error}.") from None
    return workdir


def _is_finished(worker, workdir):
    """Whether a run has written its results there, as the chief sees it."""
    finished = (workdir / "results.json").exists
    return workers.chief_first(worker, "finished", lambda: "yes" if finished() else "no") == "yes"


def _same_settings(former, config, workdir):
    if not isinstance(former, dict):
        raise UserError(f"Expected settings in {workdir / 'config.json'}. Received: {former!r}.")
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [
        f"--{key} was {former.get(key)!r} and is {value!r}"
        for key, value in now.items()
        if key not in FREE_SETTINGS and former.get(key) != value
    ]
    if changed:
        raise UserError(
            f"--resume goes on with the settings of {workdir}, but {'; '.join(changed)}. Give the "
            "same flags, or choose another --workdir."
        )
