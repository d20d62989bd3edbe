"""How a trained classifier fares outside its test set: other inputs, on four axes.

Examples:
    python -m tfmp robustness runs/digits
    python -m tfmp robustness runs/digits --axes=input

Axes, by default all that can be run, or those that --axes names:
    input               the same images in other dtypes and ranges: what the model takes, and what
                        breaks it

Leaves in --workdir:
    robustness.json     axis -> data set -> values; "made_with" says what it all was made with

Exit status: 0 done; 1 crash; 2 a mistake in the flags, the model or the data; 3 logits of the test
images as they are that are not finite: they count as wrong.
"""

import dataclasses

from tfmp import cli
from tfmp.commands.evaluate import PredictionConfig
from tfmp.errors import UserError

AXES = ("input",)


@dataclasses.dataclass(frozen=True)
class Config(PredictionConfig):
    """What to try."""

    axes: tuple[str, ...] = cli.flag(
        (), f"Out of {', '.join(AXES)}; none: all that can be run.", group="Axes"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        super().__post_init__()
        wrong = [axis for axis in self.axes if axis not in AXES or self.axes.count(axis) > 1]
        if wrong:
            raise UserError(
                f"Expected --axes out of {', '.join(AXES)}, each once. Received: "
                f"{', '.join(wrong)}."
            )


def run(config):
    """Tries all axes; returns what robustness.json holds."""
    from tfmp.commands.robustness import session  # it loads Keras, which --help need not

    if not config.model:
        raise UserError("Expected --model: a .keras file or the folder of a finished run.")
    return session.robustness(config)
