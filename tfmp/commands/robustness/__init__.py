"""How a trained classifier fares outside its test set: other inputs, on four axes.

Examples:
    python -m tfmp robustness runs/digits
    python -m tfmp robustness runs/digits --axes=input
    python -m tfmp robustness runs/digits --axes=corruptions --corruption_examples=10000
    python -m tfmp robustness runs/b --axes=corruptions --baseline=runs/a --corruptions=imagenet_c
    python -m tfmp robustness runs/digits --axes=adversarial --linf=2,8 --l2= --restarts=5
    python -m tfmp robustness runs/fashion_mnist --axes=ood --ood=mnist,digits,folder:photos

Axes, by default all that can be run, or those that --axes names:
    input               the same images in other dtypes and ranges: what the model takes, and what
                        breaks it
    corruptions         the same images under the 15 corruptions of ImageNet-C and 4 extra ones, at
                        five severities, made by imagecorruptions-imaug (the extra
                        "robustness") with a progress bar and kept on disk; or, by --corrupted, a
                        ready-made set of TFDS. With --baseline, mCE
    ood                 how well the largest softmax probability, the energy and the largest logit
                        tell the test images from those of the data sets in --ood
    adversarial         what survives FGSM, PGD and noise of the same size; gradients are taken in
                        float32 and in the model's own precision, and the program says when that
                        makes a difference, or when an attack fails a check of its own

Leaves in --workdir:
    robustness.json     axis -> data set -> values; "made_with" says what it all was made with
    robustness.npz      which corrupted images are right, and logits out of distribution

Exit status: 0 done; 1 crash; 2 a mistake in the flags, the model or the data; 3 logits of the test
images as they are that are not finite: they count as wrong; 130 interrupted.

References: those of `tfmp.metrics.corruption`, `tfmp.metrics.detection`,
`tfmp.evaluation.attacks` and `tfmp.evaluation.adversarial`.
"""

import dataclasses
import importlib.util

from tfmp import cli
from tfmp.commands.evaluate import PredictionConfig
from tfmp.errors import UserError
from tfmp.metrics.corruption import EXTRA, GROUPS, IMAGENET_C, SEVERITIES

AXES = ("input", "corruptions", "ood", "adversarial")


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
    """What every tool asks that corrupts images."""

    corruptions: tuple[str, ...] = cli.flag(
        ("imagenet_c", "extra"),
        "Names such as fog,gaussian_noise; imagenet_c are its 15, extra the 4 others.",
        group="Corruptions",
    )
    severities: tuple[int, ...] = cli.flag(SEVERITIES, "Out of 1 to 5.", group="Corruptions")
    corruption_examples: int = cli.flag(
        1000,
        "Test images to corrupt, drawn at random; all if there are fewer. Each takes its own size "
        "on disk for each corruption and severity.",
        group="Corruptions",
    )
    corrupted: str | None = cli.flag(
        None,
        "A ready-made set of TFDS, such as cifar10_corrupted or imagenet2012_corrupted, in place "
        "of corrupting the test images.",
        group="Corruptions",
    )
    cache_dir: str | None = cli.flag(
        None,
        "Folder of corrupted images, made once; none: tfmp/corrupted in the user's cache folder.",
        group="Corruptions",
    )

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """Those of `corruptions`, each once, in the order of ImageNet-C."""
        named = {name for word in self.corruptions for name in GROUPS.get(word, (word,))}
        return tuple(name for name in (*IMAGENET_C, *EXTRA) if name in named)

    def check_corruptions(self):
        """Refuses what is no corruption or severity."""
        known = (*GROUPS, *IMAGENET_C, *EXTRA)
        if wrong := [name for name in self.corruptions if name not in known]:
            raise UserError(
                f"Expected --corruptions out of {', '.join(known)}. Received: {', '.join(wrong)}."
            )
        severities = self.severities
        if not severities or {*severities} - {*SEVERITIES} or len({*severities}) < len(severities):
            raise UserError(
                "Expected --severities out of 1, 2, 3, 4 and 5, each once. Received: "
                f"{','.join(map(str, severities)) or 'none'}."
            )
        if self.corruption_examples < 1:
            raise UserError(
                "Expected --corruption_examples of at least 1. Received: "
                f"{self.corruption_examples}."
            )


@dataclasses.dataclass(frozen=True)
class Config(CorruptionConfig, PredictionConfig):
    """What to try."""

    axes: tuple[str, ...] = cli.flag(
        (), f"Out of {', '.join(AXES)}; none: all that can be run.", group="Axes"
    )
    ood: tuple[str, ...] = cli.flag(
        (),
        "Data sets out of distribution, named as in --dataset; their test images are taken (of a "
        "folder without test/, a tenth).",
        group="Axes",
    )

    baseline: str | None = cli.flag(
        None,
        "Whose errors corruption errors are divided by: a run or model, which is evaluated on the "
        "same images, or the robustness.json of one; alexnet: its published errors, for "
        "imagenet2012_corrupted. None: no mCE.",
        group="Corruptions",
    )

    linf: tuple[float, ...] = cli.flag(
        (1.0, 2.0, 4.0, 8.0),
        "Largest changes of a pixel, in 1/255 of its range; empty: no such attacks.",
        group="Adversarial",
    )
    l2: tuple[float, ...] = cli.flag(
        (32.0, 64.0, 128.0),
        "Euclidean lengths of the change of a whole image, in 1/255 of a pixel's range.",
        group="Adversarial",
    )
    steps: int = cli.flag(20, "Steps of PGD.", group="Adversarial")
    restarts: int = cli.flag(1, "Random starts of PGD, and draws of noise.", group="Adversarial")
    attack_examples: int = cli.flag(
        1000, "Test images to attack, drawn at random; all if there are fewer.", group="Adversarial"
    )

    def __post_init__(self):
        """Checks what the types don't hold."""
        super().__post_init__()
        self.check_least(steps=1, restarts=1, attack_examples=1)
        self.check_corruptions()
        for name, most in {"linf": 255, "l2": 1e6}.items():
            if not all(0 < epsilon <= most for epsilon in getattr(self, name)):
                raise UserError(
                    f"Expected --{name} above 0 and up to {most:g}, in 1/255 of a pixel's range. "
                    f"Received: {','.join(map(str, getattr(self, name)))}."
                )
        wrong = [axis for axis in self.axes if axis not in AXES or self.axes.count(axis) > 1]
        if wrong:
            raise UserError(
                f"Expected --axes out of {', '.join(AXES)}, each once. Received: "
                f"{', '.join(wrong)}."
            )
        self._check_axes()

    def _check_axes(self):
        """Refuses an axis without what it needs, and the other way around."""
        if not self.linf and not self.l2 and "adversarial" in self.chosen:
            raise UserError("Expected --linf or --l2 for the axis adversarial. Received: neither.")
        if not self.corruptions and "corruptions" in self.chosen:
            raise UserError("Expected --corruptions for the axis corruptions. Received: none.")
        needed = {"ood": "ood", "corrupted": "corruptions", "baseline": "corruptions"}
        for name, axis in needed.items():
            if getattr(self, name) and axis not in self.chosen:
                raise UserError(
                    f"Expected --axes with {axis} where --{name} is given. Received: "
                    f"{','.join(self.axes)}."
                )
        if "ood" in self.axes and not self.ood:
            raise UserError("Expected --ood with --axes=ood, such as --ood=mnist. Received: none.")

    @property
    def chosen(self):
        """The axes to run."""
        can = {
            "ood": bool(self.ood),
            "corruptions": bool(self.corrupted or self.baseline) or _has_library(),
        }
        return self.axes or tuple(axis for axis in AXES if can.get(axis, True))


def _has_library():
    return importlib.util.find_spec("imagecorruptions") is not None


def run(config):
    """Tries all axes; returns what robustness.json holds."""
    from tfmp.commands.robustness import session  # it loads Keras, which --help need not

    if not config.model:
        raise UserError("Expected --model: a .keras file or the folder of a finished run.")
    return session.robustness(config)
