"""Says what a saved model or checkpoint still holds for training to go on, and what loading loses.

Looks for the loss scale, the optimizer's state, the precision of each layer, float32 master weights
and the random state of layers such as Dropout, first in the file, then in what comes of it in a
fresh process: by Keras' own `load_model`, without tfmp, and by `tfmp.load`.

Examples:
    python -m tfmp audit model.keras
    python -m tfmp audit runs/digits
    python -m tfmp audit model.weights.h5 --output=audit.json
    python -m tfmp audit model.keras --modules=my_layers

FILE is a .keras file, a .weights.h5 file, or a run's folder (or a checkpoint in it), of which
`tfmp.load` takes the last checkpoint and Keras the model.keras. Keras' files hold no random state
of layers.

Exit status: 0 `tfmp.load` restores all that the model needs; 10 something is missing; 1 crash; 2 a
mistake: no such file, a damaged one, or classes that --modules should name.
"""

import dataclasses

from tfmp import cli
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    file: str = cli.flag(
        "",
        "A .keras file, a .weights.h5 file, or a run's folder.",
        group="Work",
        positional=True,
    )
    modules: tuple[str, ...] = cli.flag(
        (),
        "Modules of the current folder, or installed ones, that define the model's own classes.",
        group="Work",
    )
    load: bool = cli.flag(
        True, "Load it in a fresh process; false: look at the file alone.", group="Work"
    )
    limit_seconds: int = cli.flag(300, "Time limit of that process, in seconds.", group="Work")

    output: str | None = cli.flag(None, "JSON file of all that was found.", group="Results")

    def __post_init__(self):
        """Checks what the types don't hold."""
        if self.limit_seconds < 1:
            raise UserError(f"Expected --limit_seconds above 0. Received: {self.limit_seconds}.")


def run(config):
    """Prints what is there and what is lost; returns the dict that `--output` gets."""
    from tfmp.commands.audit import session  # which loads TensorFlow; `--help` need not

    return session.audit(config)
