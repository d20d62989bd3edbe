"""The settings that every recipe shares."""

import dataclasses
import math
from typing import Literal

from tfmp.cli import flag
from tfmp.data import steps_per_epoch
from tfmp.distribution import STRATEGIES
from tfmp.errors import UserError
from tfmp.training.optimizers import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run; a recipe's `Config` adds its own.

    Raises:
        UserError: A value is out of its range.
    """

    dataset: str = flag(
        "digits",
        "digits (embedded), synthetic, folder:PATH (class-named folders of images), or any image "
        "classification set of tensorflow-datasets by its name.",
        group="Data",
    )
    data_dir: str | None = flag(
        None, "Folder of prepared tensorflow-datasets; none: their own default.", group="Data"
    )
    manual_dir: str | None = flag(
        None, "Folder of source files fetched by hand, to prepare a data set from.", group="Data"
    )
    validation_fraction: float = flag(
        0.1,
        "Share of the training examples held out for validation, where the data set brings no "
        "validation split of its own; 0 to 0.5.",
        group="Data",
    )

    weights: str | None = flag(
        None,
        "File of weights to start from: .keras or .weights.h5 of the same model.",
        group="Model",
    )

    policy: str = flag(
        "mixed_float16",
        "mixed_float16, mixed_bfloat16, float32, or auto: the fastest on this device.",
        group="Precision",
    )
    float32_layers: str | None = flag(
        None, "JSON file that names the layers to keep in float32.", group="Precision"
    )
    initial_scale: float = flag(
        2.0**15, "First loss scale; used where layers compute in float16.", group="Precision"
    )
    tf32: bool = flag(
        True,
        "Let float32 matrix products use TensorFloat-32 where the GPU has it.",
        group="Precision",
    )
    jit_compile: Literal["auto", "true", "false"] = flag(
        "auto",
        "Compile the training step with XLA; auto: on GPUs and TPUs, and for half precision on "
        "CPUs.",
        group="Precision",
    )
    fused_layers: Literal["auto", "true", "false"] = flag(
        "auto",
        "Run BatchNorm, pooling, 1x1 convolutions, dense layers on sequences and attention in "
        "fewer passes over memory; auto: where XLA compiles for a GPU.",
        group="Precision",
    )

    strategy: str = flag(
        "auto",
        "none: one device; mirrored: a replica on each GPU; multi_worker: on each GPU of all the "
        "workers that TF_CONFIG or Slurm names; tpu: the one of TPU_NAME or of this machine; auto: "
        "multi_worker where several are named, tpu where TPU_NAME is set, mirrored where there are "
        "several GPUs.",
        group="Distribution",
        choices=STRATEGIES,
    )
    start_timeout: float = flag(
        300.0, "Seconds to wait for other workers at the start.", group="Distribution"
    )
    sync_batch_norm: bool = flag(
        False,
        "Take BatchNorm's batch statistics over all replicas; several replicas then compute "
        "without XLA, slower.",
        group="Distribution",
    )

    epochs: int = flag(30, "Passes over the training examples.", group="Training")
    batch_size: int = flag(
        64, "Examples in a training step, of all replicas together.", group="Training"
    )
    optimizer: str = flag(
        "sgd",
        "sgd has Nesterov momentum 0.9; adam_gan is Adam with a beta_1 of 0.5.",
        group="Training",
        choices=OPTIMIZERS,
    )
    learning_rate: float = flag(
        0.4,
        "Peak learning rate for 256 examples a step; the one used is proportional to batch_size.",
        group="Training",
    )
    warmup_epochs: float | None = flag(
        None,
        "Epochs of linear warm-up before the cosine decay; none: a tenth of --epochs.",
        group="Training",
    )
    weight_decay: float = flag(
        5e-2,
        "Decoupled weight decay, multiplied by the learning rate; none on biases, normalization "
        "and embeddings.",
        group="Training",
    )
    clip_norm: float = flag(
        0.0,
        "Largest norm of all gradients together, above which they are scaled down to it; 0: no "
        "limit.",
        group="Training",
    )
    ema: float = flag(
        0.0,
        "Momentum of the moving average of the weights that is evaluated and saved; 0: none.",
        group="Training",
    )
    gradient_accumulation_steps: int = flag(
        1,
        "Parts in which each replica computes its batch, one after the other, to save memory.",
        group="Training",
    )
    remat: bool = flag(
        False,
        "Keep few activations for the backward pass and compute the others once more: less "
        "memory, more time. Needs XLA.",
        group="Training",
    )
    steps_per_execution: int | None = flag(
        None,
        "Training steps that one call from the host runs, on GPUs as one program, which helps "
        "where steps are short; none: 1, on TPUs many.",
        group="Training",
    )
    early_stopping: int = flag(
        0,
        "Stop after so many epochs without a better result on the validation examples; 0: never.",
        group="Training",
    )

    workdir: str | None = flag(
        None, "Folder for results and checkpoints; none: runs/NAME-DATE-TIME.", group="Run"
    )
    resume: bool = flag(False, "Go on with the interrupted run in --workdir.", group="Run")
    save_every_steps: int = flag(
        0,
        "Save a checkpoint every so many steps, a multiple of --steps_per_execution, beside each "
        "epoch's; 0: no more.",
        group="Run",
    )
    seed: int = flag(0, "Seed of weights, data order and augmentation; 0 to 2**31-1.", group="Run")
    deterministic: bool = flag(
        False, "Same seed, same device, same bits; slower on GPUs.", group="Run"
    )
    compile_cache: Literal["auto", "true", "false"] = flag(
        "auto",
        "Keep XLA's compiled programs in ~/.cache/tfmp, for a faster next start; auto: on GPUs.",
        group="Run",
    )
    measure_inference: bool = flag(
        True,
        "Time the trained model's predictions at the end, for the cost card: seconds, and the "
        "compiling of three programs.",
        group="Run",
    )
    price_per_hour: float | None = flag(
        None,
        "Price of one GPU for an hour (without one, of the machine), in your currency, for the "
        "cost card; none: no prices.",
        group="Run",
    )
    trace_every: int = flag(
        0,
        "Look at headroom and underflow of every layer each so many calls of the step, and name "
        "the layer that overflows: WORKDIR/precision_trace.json and .png; 0: never.",
        group="Run",
    )
    tensorboard: bool = flag(
        False, "Write TensorBoard logs to WORKDIR/tensorboard (extra tensorboard).", group="Run"
    )

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        positive = "epochs batch_size gradient_accumulation_steps steps_per_execution"
        for name in positive.split():
            self.check(name, lambda value: value > 0, "above 0")
        natural = "save_every_steps early_stopping warmup_epochs weight_decay clip_norm trace_every"
        for name in (*natural.split(), "price_per_hour"):
            self.check(name, lambda value: value >= 0, "0 or more")
        self.check("validation_fraction", lambda value: 0 <= value <= 0.5, "from 0 to 0.5")
        self.check("initial_scale", lambda value: 1 <= value <= 2**24, "from 1 to 2**24")
        self.check("learning_rate", lambda value: 0 < value <= 2.0**127, "above 0, up to 2**127")
        self.check("start_timeout", lambda value: value > 0, "above 0")
        self.check("ema", lambda value: 0 <= value < 1, "from 0 to below 1")
        self.check("seed", lambda value: 0 <= value < 2**31, "from 0 to 2**31-1")
        self.check("warmup_epochs", lambda value: value < self.epochs, "below --epochs")
        self.check(
            "save_every_steps",
            lambda value: value % (self.steps_per_execution or 1) == 0,
            "a multiple of --steps_per_execution",
        )
        if self.resume and not self.workdir:
            raise UserError("--resume needs --workdir=FOLDER, the folder of the interrupted run.")

    def epoch_steps(self, examples):
        """Training steps in an epoch of so many examples: whole batches, and whole calls.

        Raises:
            DataError: There is not even one.
        """
        return steps_per_epoch(examples, self.batch_size, self.steps_per_execution or 1)

    def check(self, name, in_range, expected):
        """Raises a `UserError` unless a setting is None, or finite and `in_range`."""
        value = getattr(self, name)
        if value is None:
            return
        if (isinstance(value, float) and not math.isfinite(value)) or not in_range(value):
            raise UserError(f"Expected --{name} {expected}. Received: {value}.")
