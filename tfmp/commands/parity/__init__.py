"""Says by statistics whether another policy trains models as good as the reference's.

Trains a recipe --runs times under each of two policies, with seeds 0, 1, ..., each in a process of
its own, or takes finished runs; evaluates all of them; and compares accuracy, calibration, and the
accuracy of each class and group; with --corruptions and --ood also the error under corruptions and
how well other data are told from the test images. Runs are the sample: two seeds of one policy
differ, too.

Examples:
    python -m tfmp parity --workdir=parity
    python -m tfmp parity --workdir=parity --runs=10 --resume
    python -m tfmp parity --policy=mixed_bfloat16 --recipe_flags=--model=resnet18,--epochs=60
    python -m tfmp parity --reference_runs=a0,a1,a2 --other_runs=b0,b1,b2 --margin=0.01
    python -m tfmp parity --workdir=parity --resume --corruptions=imagenet_c --ood=mnist

Leaves in --workdir:
    parity.json         verdict, every test with interval and p values, flips, costs
    runs/POLICY-SEED    the runs that it trained; --resume goes on with them
    evaluated/NAME      each run's `python -m tfmp evaluate`
    robustness/NAME     each run's `python -m tfmp robustness`, with --corruptions or --ood

Exit status: 0 equivalent; 10 different; 11 not enough runs to tell; 1 crash; 2 a mistake in the
flags or the runs; 3 a training that became non-finite; 75 stopped, go on with --resume.

References:
    Schuirmann 1987 (two one-sided tests), Holm 1979 (many tests), Smyth 2004 (variances of many
    classes); in tfmp/metrics/equivalence.py. DeLong et al. 1988 (variance of an AUROC).
    Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks".
"""

import dataclasses

from tfmp import cli
from tfmp.commands.robustness import CorruptionConfig
from tfmp.errors import UserError

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Config(CorruptionConfig):
    """What to compare."""

    corruptions: tuple[str, ...] = cli.flag(
        (),
        "Names such as fog,gaussian_noise, or imagenet_c for its 15, whose mean error is compared, "
        "and extra for the 4 others; none: no corruptions.",
        group="Corruptions",
    )

    recipe: str = cli.flag("resnet", "A module of tfmp.recipes.", group="Runs")
    reference: str = cli.flag(
        "float32", "Policy of the reference runs.", group="Runs", choices=POLICIES
    )
    policy: str = cli.flag(
        "mixed_float16", "Policy of the other runs.", group="Runs", choices=POLICIES
    )
    runs: int = cli.flag(5, "Runs of each policy, 3 or more.", group="Runs")
    recipe_flags: tuple[str, ...] = cli.flag(
        (), "Further flags of the recipe, such as --model=resnet18,--tf32=false.", group="Runs"
    )
    reference_runs: tuple[str, ...] = cli.flag(
        (),
        "Folders of finished runs, or of evaluations, to take in place of training the reference.",
        group="Runs",
    )
    other_runs: tuple[str, ...] = cli.flag(
        (), "Likewise, of the other policy, in the order of the same seeds.", group="Runs"
    )

    margin: float = cli.flag(
        0.005, "Difference of accuracy, 0-1, up to which it is taken for none.", group="Verdict"
    )
    part_margin: float = cli.flag(
        0.02, "Likewise, of the accuracy of each class and group.", group="Verdict"
    )
    ece_margin: float = cli.flag(
        0.01, "Likewise, of the expected calibration error.", group="Verdict"
    )
    corruption_margin: float = cli.flag(
        0.01,
        "Likewise, of the mean error of corrupted test images, over ImageNet-C's corruptions and "
        "the severities.",
        group="Verdict",
    )
    auroc_margin: float = cli.flag(
        0.01,
        "Likewise, of the AUROC of telling --ood from the test images by the largest softmax "
        "probability.",
        group="Verdict",
    )
    alpha: float = cli.flag(
        0.05,
        "Chance of calling equal policies different (all tests together), or different ones "
        "equivalent.",
        group="Verdict",
    )
    group_by: str | None = cli.flag(
        None, "Groups to compare, as for `python -m tfmp evaluate`.", group="Verdict"
    )
    ood: tuple[str, ...] = cli.flag(
        (), "Data sets out of distribution, as for `python -m tfmp robustness`.", group="Verdict"
    )
    target_accuracy: float | None = cli.flag(
        None,
        "Validation accuracy, 0-1, to tell the time to; none: 99 % of what the reference runs end "
        "with.",
        group="Verdict",
    )

    workdir: str | None = cli.flag(
        None, "Folder of all files; none: runs/parity-DATE-TIME.", group="Results"
    )
    resume: bool = cli.flag(
        False,
        "Go on in --workdir: finished runs are reused, a stopped one goes on.",
        group="Results",
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        taken = len(self.reference_runs), len(self.other_runs)
        if bool(taken[0]) != bool(taken[1]):
            raise UserError("Expected --reference_runs and --other_runs together. Received: one.")
        fewest = min(taken) if taken[0] else self.runs
        if fewest < 3:
            raise UserError(
                "Expected 3 runs or more of each policy, to tell a difference from chance. "
                f"Received: {fewest}."
            )
        if not taken[0] and self.reference == self.policy:
            raise UserError(f"Expected two policies. Received: {self.policy} for both.")
        self.check_corruptions()
        if self.corrupted and not self.corruptions:
            raise UserError(
                "Expected --corruptions with --corrupted, such as --corruptions=imagenet_c. "
                "Received: none."
            )
        margins = ("margin", "part_margin", "ece_margin", "corruption_margin", "auroc_margin")
        for name in (*margins, "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"Expected --{name} above 0, below 1. Received: {getattr(self, name)}."
                )
        if self.resume and not self.workdir:
            raise UserError("--resume needs --workdir=FOLDER, the folder to go on in.")


def run(config):
    """Compares; returns what parity.json holds, if the kinds are equivalent."""
    from tfmp.commands.parity import session  # it loads Keras, which --help need not

    return session.compare(config)
