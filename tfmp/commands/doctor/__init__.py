"""Finds what half precision will break in a model, before it does.

Looks at the model's layers, dtypes, constants and training step, without training it: a float16
output, gradients that pass through float16 without a loss scale, masks and epsilons that float16
can't hold, ids that it rounds, layers that lose digits inside, what turns XLA off. docs/hazards.md
has every rule with an example, its mend and its source; `--explain=RULE` prints it.

With `--data` a training step, without its update, runs on the batch in float32 and in the policy.
Each layer is run again alone in float32, so that the first one that overflows, gives NaN, flushes
to zero or leaves float32 is named where that arises, in its outputs or in its gradients.

Examples:
    python -m tfmp doctor my_models:build
    python -m tfmp doctor my_models:build --policy=mixed_bfloat16 --output=doctor.json
    python -m tfmp doctor my_models:build --data=my_models:batch
    python -m tfmp doctor my_models:build --data=random
    python -m tfmp doctor runs/digits/model.keras --data=batch.npz
    python -m tfmp doctor --explain=unscaled_loss

`my_models:build` is a function without arguments in a module of the current folder, which returns a
built Keras model of any kind, compiled or not; of a tuple, as for `matrix`, the first is the model.
It is called under the policy. A saved model that is float32 altogether is put under the policy; one
that is half is taken as it is.

Exit status: 0 nothing but information; 10 errors or warnings were found; 1 crash; 2 a mistake in
the flags, or the function returned something else.
"""

import dataclasses
from typing import Literal

from tfmp import cli
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    target: str = cli.flag(
        "",
        "A .keras file, or MODULE:FUNCTION that returns a built Keras model.",
        group="Work",
        positional=True,
    )
    policy: Literal["mixed_float16", "mixed_bfloat16", "float32"] = cli.flag(
        "mixed_float16", "The policy that the model is to run in.", group="Work"
    )
    data: str | None = cli.flag(
        None,
        "A batch to run the model on: an .npz file with x and, if there are any, labels y; "
        "MODULE:FUNCTION that returns inputs, or (inputs, labels); random: drawn by the inputs "
        "that the model declares. None: the model isn't run.",
        group="Work",
    )

    infos: bool = cli.flag(
        True, "Show findings that cost speed or memory only; false: hide them.", group="Results"
    )
    output: str | None = cli.flag(None, "JSON file of all findings.", group="Results")
    explain: str | None = cli.flag(
        None, "Print what a rule is about, and look at no model.", group="Results"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        data = self.data or "random"
        if data != "random" and ":" not in data and not data.endswith(".npz"):
            raise UserError(
                "Expected --data of an .npz file or MODULE:FUNCTION, or random. Received: "
                f"{self.data!r}."
            )


def run(config):
    """Prints the findings; returns the dict that `--output` gets. None: a rule was explained."""
    from tfmp.commands.doctor import session  # which loads Keras; `--help` need not

    return session.explain(config.explain) if config.explain else session.examine(config)
