"""What a run stands on: its folder, its seeds, its precision and its device."""

import dataclasses
import datetime
import importlib.util
import json
import pathlib

import keras
import tensorflow as tf

from tfmp import hardware, policies
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Session:
    """What is really in force for a run.

    Attributes:
        name: The recipe's name.
        workdir: Folder of the run's files.
        device: A `tfmp.hardware.Device`.
        policy: Name of the Keras dtype policy.
        policy_reason: Why that policy, one sentence.
        jit_compile: Whether XLA compiles the training step.
        tf32: Whether float32 matrix products use TensorFloat-32.
        replicas: Copies of the model that train together.
    """

    name: str
    workdir: pathlib.Path
    device: hardware.Device
    policy: str
    policy_reason: str
    jit_compile: bool
    tf32: bool
    replicas: int = 1


def start(name, config):
    """Opens the run's folder and sets seeds, determinism and TF32.

    Args:
        name: The recipe's name.
        config: A `tfmp.training.TrainingConfig`.

    Returns:
        A `Session`.

    Raises:
        UserError: The folder holds another run, or the policy is unknown.
    """
    if config.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install tensorboard."
        )
    resolved = policies.resolve(config.policy)
    workdir = open_workdir(name, config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    hardware.set_tf32(config.tf32)
    device = hardware.describe()
    return Session(
        name=name,
        workdir=workdir,
        device=device,
        policy=resolved.name,
        policy_reason=resolved.reason,
        jit_compile=_xla(config.jit_compile, device, resolved.name),
        tf32=hardware.tf32_in_force(),
    )


def _xla(asked, device, policy):
    """On a CPU XLA pays for half precision only, where it saves conversions."""
    if asked != "auto":
        return asked == "true"
    return device.kind != "cpu" or policy != "float32"


def open_workdir(name, config):
    """The run's folder: a new one, or with `resume` that of the interrupted run.

    Args:
        name: Start of the default folder's name.
        config: A `tfmp.training.TrainingConfig`; it is written to `config.json`.

    Returns:
        A `pathlib.Path`.

    Raises:
        UserError: The folder can't be made, holds a finished run, holds an interrupted run and
            `resume` is off, or that run had other settings.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    workdir = pathlib.Path(config.workdir or f"runs/{name}-{now}")
    file = workdir / "config.json"
    if (workdir / "results.json").exists():
        raise UserError(
            f"{workdir} holds a finished run ({workdir / 'results.json'}). Choose another "
            "--workdir, or remove it first."
        )
    if file.exists() and not config.resume:
        raise UserError(
            f"{workdir} holds an interrupted run. Add --resume to go on with it, or choose another "
            "--workdir."
        )
    try:
        if file.exists():
            _same_settings(json.loads(file.read_text()), config, file)
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(config))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"Can't use --workdir={workdir}: {error}.") from None
    return workdir


def _same_settings(former, config, file):
    free = {"workdir", "resume", "save_every_steps", "tensorboard", "data_dir", "manual_dir"}
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [
        f"--{key} was {former.get(key)!r} and is {value!r}"
        for key, value in now.items()
        if key not in free and former.get(key) != value
    ]
    if changed:
        raise UserError(
            f"--resume goes on with the settings of {file}, but {'; '.join(changed)}. Give the "
            "same flags, or choose another --workdir."
        )


def write_json(file, value):
    """Writes JSON so that a reader sees the old file or the new one, never a part.

    Args:
        file: Path.
        value: What `json` can write; NaN and infinities become null.

    Returns:
        The value as a reader gets it: lists for tuples, None for NaN.
    """
    value = _plain(value)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    partial.replace(file)
    return value


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None
    return value
