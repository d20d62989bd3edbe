"""Trains models a few steps in every precision, with and without XLA, on one replica and two.

Looks in minutes, on any machine, for what spoils a long job in half precision: each combination is
a cell, trained in a process of its own, and green or red with the reason. Red is what doesn't
train, a model that doesn't compute in the cell's precision, non-finite steps, a loss far from
float32's, outputs that are not float32, a loss scale that is missing where float16 is used or that
has collapsed, and a model that can't be saved or predicts something else in a fresh process.

Examples:
    python -m tfmp matrix resnet vit
    python -m tfmp matrix
    python -m tfmp matrix my_models:build --output=matrix.json
    python -m tfmp matrix my_models:build --policies=float32,mixed_float16 --replicas=1
    python -m tfmp matrix resnet --recipe_flags=--model=resnet18,--optimizer=lamb

Without a target it takes all recipes. `my_models:build` is a function without arguments in a module
of the current folder, which returns (compiled Keras model, data); data are a `tf.data.Dataset` of
batches (x, y) or arrays (x, y). It is called in each cell, under the cell's policy and strategy,
and its model trains by `tfmp.accelerate`. Two replicas are GPUs, or logical devices where there is
one device only. A recipe that trains on one device, such as gan, has no cells of two.

Exit status: 0 all green; 10 a cell is red; 1 crash; 2 a mistake in the flags, or the function
returned something else.
"""

import dataclasses
import math

from tfmp import cli
from tfmp.errors import UserError

CHOICES = {
    "policies": ("float32", "mixed_float16", "mixed_bfloat16"),
    "jit_compile": ("false", "true"),
    "replicas": (1, 2),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; every combination of the lists is a cell."""

    targets: tuple[str, ...] = cli.flag(
        (),
        "Modules of tfmp.recipes, or MODULE:FUNCTION that returns (compiled model, data); none: "
        "all recipes.",
        group="Work",
        positional=True,
    )
    policies: tuple[str, ...] = cli.flag(
        CHOICES["policies"], "Out of float32, mixed_float16, mixed_bfloat16.", group="Work"
    )
    jit_compile: tuple[str, ...] = cli.flag(
        CHOICES["jit_compile"], "Without XLA, with it, or both: false,true.", group="Work"
    )
    replicas: tuple[int, ...] = cli.flag(
        CHOICES["replicas"], "Replicas that train together: 1,2.", group="Work"
    )
    steps: int = cli.flag(
        6,
        "Training steps in a cell, all on the same batch; up to 15 that the loss scale skips come "
        "on top.",
        group="Work",
    )
    batch_size: int = cli.flag(
        16,
        "Examples in a step, of recipes and of a function's arrays; a dataset's own batch is taken "
        "as it is.",
        group="Work",
    )
    recipe_flags: tuple[str, ...] = cli.flag(
        (), "Further flags of the recipes, such as --model=resnet18.", group="Work"
    )

    tolerance: float = cli.flag(
        0.1,
        "Share by which a half precision's mean loss may differ from float32's.",
        group="Verdict",
    )
    limit_seconds: int = cli.flag(600, "Time limit of a process, in seconds.", group="Verdict")

    output: str | None = cli.flag(
        None, "JSON file of all results; none: runs/matrix-DATE-TIME.json.", group="Results"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        for name in ("batch_size", "limit_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected --{name} above 0. Received: {getattr(self, name)}.")
        if self.steps < 2:
            raise UserError(f"Expected --steps of 2 or more. Received: {self.steps}.")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise UserError(f"Expected --tolerance above 0. Received: {self.tolerance}.")
        for name in ("targets", *CHOICES):
            values = getattr(self, name)
            allowed = CHOICES.get(name, values)
            if len(set(values)) < len(values) or not set(values) <= set(allowed):
                raise UserError(
                    f"Expected --{name}, each once"
                    + (f", out of {', '.join(map(str, allowed))}" if name in CHOICES else "")
                    + f". Received: {','.join(map(str, values))}."
                )
            if not values and name in CHOICES:
                raise UserError(f"Expected --{name} of one or more. Received: nothing.")


def run(config):
    """Runs all cells and prints the table; returns the dict in the JSON file."""
    from tfmp.commands.matrix import session  # which loads Keras; `--help` need not

    return session.run(config)
