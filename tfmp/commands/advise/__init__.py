"""Advises on precision for this device and a model, with the gain that was measured.

Says what the device is good at, which policy and batch size to use, which layers have sizes that
tensor cores dislike, and the gain of half precision over float32: as predicted from datasheets,
and as measured by a probe of a few steps, each in a process of its own. Where it is under 1.1x:
"not worth it".

Examples:
    python -m tfmp advise
    python -m tfmp advise resnet --model=resnet50 --image_size=224 --batch_sizes=128,256
    python -m tfmp advise my_models:build --policy=mixed_bfloat16
    python -m tfmp advise my_models:build --probe=false

On a GPU XLA compiles each probe's program first, for a minute or more with ResNet-50; the next run
finds the programs (see `--compile_cache` of the recipes).

`my_models:build` is a function without arguments in a module of the current folder, which returns
a built functional or Sequential Keras model.

Exit status: 0 done, also where it is not worth it; 1 crash; 2 a mistake in the flags.

References:
    NVIDIA, "Matrix Multiplication Background User's Guide", requirements to use tensor cores
        (sizes that are multiples of 16 bytes).
    NVIDIA, "Train With Mixed Precision".
    Williams et al. 2009, "Roofline: an insightful visual performance model" (the prediction).
"""

import dataclasses
from typing import Literal

from tfmp import cli
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to advise on."""

    target: str = cli.flag(
        "resnet",
        "A module of tfmp.recipes, or MODULE:FUNCTION that returns a built Keras model.",
        group="Work",
        positional=True,
    )
    model: str | None = cli.flag(
        None,
        "A --model of the recipe; none: on an accelerator a large one, such as resnet50; on a CPU "
        "the recipe's default.",
        group="Work",
    )
    image_size: int | None = cli.flag(
        None,
        "Height and width of the recipe's images in pixels; none: 224, on a CPU 32.",
        group="Work",
    )
    policy: Literal["auto", "mixed_float16", "mixed_bfloat16", "float32"] = cli.flag(
        "auto", "The policy to advise on; auto: the one that this device is made for.", group="Work"
    )
    batch_sizes: tuple[int, ...] = cli.flag(
        (),
        "Examples in a step, one or more; none given: 32 on a CPU, else 128,256 (of gpt 8,16), "
        "or 32,64 (of gpt 2,4) where the device has less than 30 GB.",
        group="Work",
    )

    probe: bool = cli.flag(True, "Measure; false: facts and prediction only.", group="Measurement")
    steps: int = cli.flag(20, "Training steps in a timed window, of three.", group="Measurement")
    limit_seconds: int = cli.flag(600, "Time limit of a process, in seconds.", group="Measurement")

    output: str | None = cli.flag(None, "JSON file of all that is said.", group="Results")

    def __post_init__(self):
        """Checks what the types don't hold."""
        for name in ("image_size", "steps", "limit_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"Expected --{name} above 0. Received: {value}.")
        sizes = self.batch_sizes
        if any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
            given = ",".join(map(str, sizes))
            raise UserError(f"Expected --batch_sizes above 0, each once. Received: {given}.")
        if ":" in self.target and (self.model or self.image_size):
            raise UserError(
                f"--model and --image_size are of recipes: {self.target} makes a model of its own."
            )


def run(config):
    """Prints the advice; returns the dict that `--output` gets."""
    from tfmp.commands.advise import session  # which loads Keras; `--help` need not

    return session.advise(config)
