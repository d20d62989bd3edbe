"""Measures the training speed of a recipe's model, next to PyTorch's if asked.

Every measurement is a process of its own, which makes the recipe as the recipe itself does and
calls the training function that `fit` would call. Compiling, warm-up and reading the loss are
outside of the timed windows; a row whose windows were not waited for, or whose loss did not fall
(a GAN's need not), is marked invalid.

Examples:
    python -m tfmp benchmark --output=before.json
    python -m tfmp benchmark text_classifier --batch_sizes=64
    python -m tfmp benchmark gan --inputs=device --recipe_flags=--width=64
    python -m tfmp benchmark --compare=before.json
    python -m tfmp benchmark --compare=before.json,after.json
    python -m tfmp benchmark --peer=torch --peer_python=PATH --batch_sizes=128,256
    python -m tfmp benchmark --policies=mixed_float16 --loss_scale=recipe,none
    python -m tfmp benchmark --inputs=device --remat=false,true
    python -m tfmp benchmark --inputs=device,host --dataset=folder:PATH
    python -m tfmp benchmark --inputs=device --policies=mixed_float16 --replicas=1,2,4,8
    python -m tfmp benchmark --inputs=device --replicas=1,8 --scaling=strong --batch_sizes=2048
    python -m tfmp benchmark --inputs=device --steps_per_execution=1,10
    python -m tfmp benchmark --inputs=host --policies=mixed_float16 --profile

With --replicas, that many GPUs train together under MirroredStrategy; on a machine with one GPU
or none, as many logical devices that share it. Efficiency is images/s as a share of what the
GPUs would do one by one: "weak" next to a row of one replica with the same batch a replica,
"strong" next to one with the same whole batch.

Exit status: 0 done; 1 a measurement failed or is invalid; 2 a mistake in the flags, or files that
can't be compared; 10 slower than --tolerance allows.
"""

import dataclasses
import math
from typing import Literal

from tfmp import cli, recipes
from tfmp.errors import UserError

CHOICES = {
    "policies": ("mixed_float16", "mixed_bfloat16", "float32"),
    "jit_compile": ("true", "false"),
    "inputs": ("device", "host"),
    "loss_scale": ("recipe", "none"),
    "remat": ("false", "true"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure; every combination of the lists is a row."""

    recipe: str = cli.flag("resnet", "A module of tfmp.recipes.", group="Work", positional=True)
    model: str | None = cli.flag(
        None, "A --model of the recipe; none: its one for GPUs, such as resnet50.", group="Work"
    )
    image_size: int | None = cli.flag(
        None, "Height and width of the images in pixels; none: 224, of gan 64.", group="Work"
    )
    policies: tuple[str, ...] = cli.flag(
        ("mixed_float16", "float32"), "Out of mixed_float16, mixed_bfloat16, float32.", group="Work"
    )
    jit_compile: tuple[str, ...] = cli.flag(
        ("true",), "With XLA or without, or both: true,false.", group="Work"
    )
    remat: tuple[str, ...] = cli.flag(
        ("false",),
        "Keep activations or compute them once more (--remat of the recipe), or both: false,true.",
        group="Work",
    )
    batch_sizes: tuple[int, ...] | None = cli.flag(
        None,
        "Examples in a step; of each replica, unless --scaling=strong; none: 256, or 16 windows of "
        "text.",
        group="Work",
    )
    replicas: tuple[int, ...] = cli.flag((1,), "GPUs that train together.", group="Work")
    scaling: Literal["weak", "strong"] = cli.flag(
        "weak",
        "With more --replicas: weak: each takes a batch of --batch_sizes; strong: they share it.",
        group="Work",
    )
    steps_per_execution: tuple[int, ...] = cli.flag(
        (1,), "Training steps that one call from the host runs.", group="Work"
    )
    inputs: tuple[str, ...] = cli.flag(
        ("device", "host"),
        "device: one batch that stays on the device; host: the recipe's own input pipeline.",
        group="Work",
    )
    dataset: str = cli.flag(
        "synthetic",
        "What the pipeline reads: random examples in the host's memory, or another --dataset of "
        "the recipe, such as folder:PATH.",
        group="Work",
    )
    loss_scale: tuple[str, ...] = cli.flag(
        ("recipe",),
        "recipe: as the recipe does, which also skips and undoes bad steps; none: without any of "
        "that, to see what it costs.",
        group="Work",
    )
    tf32: bool = cli.flag(
        True, "Let float32 matrix products use TensorFloat-32 where the GPU has it.", group="Work"
    )

    recipe_flags: tuple[str, ...] = cli.flag(
        (),
        "Further flags of the recipe, such as --fused_layers=false,--sync_batch_norm.",
        group="Work",
    )

    repeats: int = cli.flag(3, "Processes for each row.", group="Measurement")
    windows: int = cli.flag(5, "Timed windows in a process.", group="Measurement")
    steps: int = cli.flag(40, "Training steps in a window.", group="Measurement")
    limit_seconds: int = cli.flag(900, "Time limit of a process, in seconds.", group="Measurement")
    profile: bool = cli.flag(
        False,
        "Run four more calls under TensorFlow's profiler, or the peer's, behind the windows: where "
        "the step spends a GPU's time.",
        group="Measurement",
    )

    peer: Literal["none", "torch"] = cli.flag(
        "none",
        "torch: measure the same work in PyTorch with AMP, channels_last and torch.compile, in "
        "turns with ours.",
        group="Peer",
    )
    peer_python: str | None = cli.flag(
        None, "Python that has torch, and torchvision for images; none: this one.", group="Peer"
    )

    output: str | None = cli.flag(
        None, "JSON file of all results; none: runs/benchmark-DATE-TIME.json.", group="Results"
    )
    compare: tuple[str, ...] = cli.flag(
        (),
        "A former JSON file, to compare with; of two files, nothing is measured.",
        group="Results",
    )
    tolerance: float = cli.flag(
        0.05, "Share of the speed that may be lost, in a comparison.", group="Results"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        for name in ("image_size", "repeats", "windows", "steps", "limit_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"Expected --{name} above 0. Received: {value}.")
        if not 0 <= self.tolerance < 1 or not math.isfinite(self.tolerance):
            raise UserError(f"Expected --tolerance from 0 to below 1. Received: {self.tolerance}.")
        for name, allowed in CHOICES.items():
            if not set(getattr(self, name)) <= set(allowed):
                given = ",".join(getattr(self, name))
                raise UserError(
                    f"Expected --{name} out of {', '.join(allowed)}. Received: {given}."
                )
        for name in (*CHOICES, "batch_sizes", "replicas", "steps_per_execution"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or len(set(values)) < len(values):
                given = ",".join(map(str, values)) or "nothing"
                raise UserError(f"Expected --{name} of one or more, each once. Received: {given}.")
        for name in ("batch_sizes", "replicas", "steps_per_execution"):
            if any(number < 1 for number in getattr(self, name) or ()):
                raise UserError(f"Expected --{name} above 0. Received: {getattr(self, name)}.")
        if any(self.steps % number for number in self.steps_per_execution):
            raise UserError(
                "Expected --steps that each of --steps_per_execution divides. Received: "
                f"{self.steps} and {','.join(map(str, self.steps_per_execution))}."
            )
        if self.peer != "none" and self.dataset != "synthetic":
            raise UserError(
                f"Expected --dataset=synthetic with --peer={self.peer}, which reads nothing else. "
                f"Received: {self.dataset}."
            )
        if "none" in self.loss_scale and max(self.replicas) > 1:
            raise UserError(
                "Expected --loss_scale=recipe with several --replicas. Received: "
                f"{','.join(self.loss_scale)}."
            )
        if len(self.compare) > 2:
            raise UserError(f"Expected one or two files in --compare. Received: {self.compare}.")


def run(config):
    """Measures and compares as `config` says; returns the dict in the JSON file, if any."""
    from tfmp.commands.benchmark import compare, session  # which load Keras; `--help` need not

    former = [compare.load(file) for file in config.compare]
    if len(former) == 2:
        compare.compare(former[0], former[1], config.tolerance)
        return None
    results = session.measure(complete(config), *former)
    if former:
        compare.compare(former[0], results, config.tolerance)
    return results


def complete(config):
    """A `Config` with what the recipe decides of what was left open.

    Raises:
        UserError: No such recipe, one without a choice of models that was given one, one without
            synthetic data that was given no other, one without images that was given their size,
            one that the peer doesn't have, or one whose step needs its loss scales.
    """
    if config.recipe not in recipes.names():
        known = ", ".join(recipes.names())
        raise UserError(f"Expected --recipe out of {known}. Received: {config.recipe}.")
    images, model = recipes.takes_images(config.recipe), recipes.large_model(config.recipe)
    if config.model and not model:
        raise UserError(
            f"Expected no --model, since {config.recipe} has one alone. Received: {config.model}."
        )
    if config.image_size and not images:
        raise UserError(
            f"Expected no --image_size, since {config.recipe} takes no images. "
            f"Received: {config.image_size}."
        )
    if config.dataset == "synthetic" and not recipes.has_synthetic(config.recipe):
        raise UserError(
            f"Expected --dataset with {config.recipe}, for which there are no synthetic data. "
            f"Received: {config.dataset}."
        )
    if config.peer != "none" and not (images and model) and config.recipe != "gpt":
        raise UserError(
            f"Expected a recipe of models of images or gpt with --peer={config.peer}, which has no "
            f"other. Received: {config.recipe}."
        )
    if "none" in config.loss_scale and config.recipe == "gan":
        raise UserError(
            "Expected --loss_scale=recipe with gan, whose step has two. Received: "
            f"{','.join(config.loss_scale)}."
        )
    return dataclasses.replace(
        config,
        model=config.model or model,
        image_size=config.image_size or recipes.large_size(config.recipe),
        batch_sizes=config.batch_sizes or (recipes.large_batch(config.recipe),),
    )
