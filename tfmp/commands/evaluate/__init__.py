"""Evaluates a trained classifier: accuracy, classes, groups and calibration, with intervals.

Metrics are computed in float64 from the logits. With --policies the same weights predict under
each of them, so that a gap between training and inference shows.

Examples:
    python -m tfmp evaluate runs/digits
    python -m tfmp evaluate runs/digits --policies=float32,mixed_float16,mixed_bfloat16
    python -m tfmp evaluate --model=runs/cifar100 --group_by=coarse_label --temperature_scaling
    python -m tfmp evaluate runs/digits --group_by=writers.csv:half
    python -m tfmp evaluate model.keras --dataset=folder:photos --workdir=evaluated

Leaves in --workdir:
    evaluation.json     metric -> data set -> value; "intervals", "temperature_scaled" and
                        "policies" hold the same form; "temperature_missing" says why there
                        is no temperature, "made_with" what it all was made with
    predictions.npz     logits, labels, groups if any; predictions-POLICY.npz of other policies
    reliability.png     accuracy over confidence
    confusion.png       true against predicted classes

Intervals are by bootstrap over the test images: what another test set of the same kind would
change, and not what another training would. Those of single classes and groups are Wilson's.

Exit status: 0 done; 1 crash; 2 a mistake in the flags, the model or the data; 3 logits that are
not finite: the files say how many, those examples count as wrong, and nll, brier and calibration
are null.

References:
    Guo et al. 2017, "On calibration of modern neural networks" (ECE, temperature scaling).
    Nixon et al. 2019, "Measuring calibration in deep learning" (adaptive bins).
    Brier 1950, "Verification of forecasts expressed in terms of probability".
"""

import dataclasses
from typing import Literal

from tfmp import cli
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """What every tool asks that predicts with a trained model."""

    model: str | None = cli.flag(
        None,
        "A .keras file or the folder of a finished run; takes images of 0-255.",
        group="Model",
        positional=True,
    )
    jit_compile: Literal["auto", "true", "false"] = cli.flag(
        "auto",
        "Whether XLA compiles the predictions; auto: on an accelerator, and on a CPU for half "
        "precision.",
        group="Model",
    )
    tf32: bool = cli.flag(
        True, "Let float32 matrix products use TensorFloat-32 where the GPU has it.", group="Model"
    )

    dataset: str | None = cli.flag(
        None,
        "digits, folder:PATH or any name in tensorflow-datasets; none: the run's.",
        group="Data",
    )
    data_dir: str | None = cli.flag(
        None, "Folder of prepared TFDS data; none: the run's, else TFDS' own.", group="Data"
    )
    manual_dir: str | None = cli.flag(
        None, "Folder of files fetched by hand; none: the run's.", group="Data"
    )
    batch_size: int = cli.flag(256, "Images predicted at once.", group="Data")

    seed: int = cli.flag(0, "Decides whatever is drawn.", group="Run")
    workdir: str | None = cli.flag(
        None, "New folder of the results; none: runs/TOOL-DATE-TIME.", group="Results"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        self.check_least(batch_size=1, seed=0)

    def check_least(self, **least):
        """Refuses numbers below a least one, by the flag's name."""
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(
                    f"Expected --{name} of at least {value}. Received: {getattr(self, name)}."
                )


@dataclasses.dataclass(frozen=True)
class Config(PredictionConfig):
    """What to evaluate."""

    policies: tuple[str, ...] = cli.flag(
        (),
        "Policies to predict under beside the model's own: float32, mixed_float16, mixed_bfloat16.",
        group="Model",
    )
    split: Literal["test", "validation"] = cli.flag("test", "What to predict.", group="Data")
    group_by: str | None = cli.flag(
        None,
        "A feature of the TFDS data set, or FILE.csv:COLUMN with a row for each test example: "
        "accuracy by group, and the worst group.",
        group="Data",
    )

    bins: int = cli.flag(15, "Bins of the calibration errors.", group="Metrics")
    temperature_scaling: bool = cli.flag(
        False,
        "Fit a temperature on the validation images, and report calibration with it, too.",
        group="Metrics",
    )
    replicates: int = cli.flag(
        2000, "Resampled test sets behind the 95 % intervals; 0: none.", group="Metrics"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        super().__post_init__()
        self.check_least(bins=1, replicates=0)
        known = ("float32", "mixed_float16", "mixed_bfloat16")
        wrong = [x for x in self.policies if x not in known or self.policies.count(x) > 1]
        if wrong:
            raise UserError(
                f"Expected --policies out of {', '.join(known)}, each once. Received: "
                f"{', '.join(wrong)}."
            )
        if self.split != "test" and (self.group_by or self.temperature_scaling):
            raise UserError(
                "Expected --split=test with --group_by or --temperature_scaling. Received: "
                f"{self.split}."
            )


def run(config):
    """Evaluates; returns what evaluation.json holds."""
    from tfmp.commands.evaluate import session  # it loads Keras, which --help need not

    if not config.model:
        raise UserError("Expected --model: a .keras file or the folder of a finished run.")
    return session.evaluate(config)
