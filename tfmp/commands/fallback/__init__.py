"""Finds the smallest set of layers that must stay float32 for a model to train in half precision.

Trains a few steps of one batch again and again, with other layers in float32 each time, and
compares loss and gradients with float32's: by bisection, the layers that the doctor suspects first.
Writes the layers as a file that every recipe takes as --float32_layers=FILE and that
`tfmp.policies.load` reads, and says what each of them costs in time and memory.

Examples:
    python -m tfmp fallback my_models:build
    python -m tfmp fallback my_models:build --policy=mixed_bfloat16 --tolerance=0.02
    python -m tfmp fallback resnet --recipe_flags=--model=resnet18,--learning_rate=10

`my_models:build` is a function without arguments in a module of the current folder, which returns
(compiled Keras model, data), as for `matrix`; it is called under the policy. The steps start at the
weights that it returns: of a model that breaks late in training, return one that was loaded.

Exit status: 0 found, also where no layer has to stay float32; 3 training is not finite in float32
either; 10 not even all layers in float32 train as float32 does; 1 crash; 2 a mistake in the flags,
or the function returned something else.

References:
    Zeller & Hildebrandt 2002, "Simplifying and isolating failure-inducing input", IEEE TSE 28.
"""

import dataclasses
import math
from typing import Literal

from tfmp import cli
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to search."""

    target: str = cli.flag(
        "",
        "MODULE:FUNCTION that returns (compiled model, data), or a module of tfmp.recipes.",
        group="Work",
        positional=True,
    )
    policy: Literal["mixed_float16", "mixed_bfloat16"] = cli.flag(
        "mixed_float16", "The policy of all other layers.", group="Work"
    )
    batch_size: int = cli.flag(
        16,
        "Examples in a step, of a recipe and of a function's arrays; a dataset's own batch is "
        "taken as it is.",
        group="Work",
    )
    steps: int = cli.flag(3, "Training steps of a try, all on the same batch.", group="Work")
    seed: int = cli.flag(0, "Seed of all that is random in them.", group="Work")
    recipe_flags: tuple[str, ...] = cli.flag(
        (), "Further flags of the recipe, such as --model=resnet18.", group="Work"
    )

    tolerance: float = cli.flag(
        0.1, "Share by which the loss of a step may differ from float32's.", group="Verdict"
    )

    costs: bool = cli.flag(
        True,
        "Measure training with and without each layer found; false: leave that out.",
        group="Costs",
    )
    jit_compile: Literal["auto", "true", "false"] = cli.flag(
        "auto", "Whether XLA compiles the steps that are timed; auto: as a recipe.", group="Costs"
    )
    cost_steps: int = cli.flag(10, "Training steps in a timed window, of three.", group="Costs")

    output: str = cli.flag("float32_layers.json", "The file of the layers.", group="Results")
    details: str | None = cli.flag(
        None, "JSON file of all tries, with their losses, and costs.", group="Results"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        for name in ("batch_size", "steps", "cost_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected --{name} above 0. Received: {getattr(self, name)}.")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise UserError(f"Expected --tolerance above 0. Received: {self.tolerance}.")
        if self.seed < 0:
            raise UserError(f"Expected --seed of 0 or more. Received: {self.seed}.")
        if ":" in self.target and self.recipe_flags:
            raise UserError(f"--recipe_flags are for recipes: {self.target} is a function.")


def run(config):
    """Prints the tries and what they found; returns the dict that `--details` gets."""
    from tfmp.commands.fallback import session  # which loads Keras; `--help` need not

    return session.search(config)
