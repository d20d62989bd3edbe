"""How a trained classifier fares outside its test set: other inputs, on three axes.

Examples:
    python -m tfmp robustness runs/digits
    python -m tfmp robustness runs/digits --axes=input
    python -m tfmp robustness runs/digits --axes=adversarial --linf=2,8 --l2= --restarts=5
    python -m tfmp robustness runs/fashion_mnist --axes=ood --ood=mnist,digits,folder:photos

Axes, by default all that can be run, or those that --axes names:
    input               the same images in other dtypes and ranges: what the model takes, and what
                        breaks it
    ood                 how well the largest softmax probability, the energy and the largest logit
                        tell the test images from those of the data sets in --ood
    adversarial         what survives FGSM, PGD and noise of the same size; gradients are taken in
                        float32 and in the model's own precision, and the program says when that
                        makes a difference, or when an attack fails a check of its own

Leaves in --workdir:
    robustness.json     axis -> data set -> values; "made_with" says what it all was made with

Exit status: 0 done; 1 crash; 2 a mistake in the flags, the model or the data; 3 logits of the test
images as they are that are not finite: they count as wrong.

References: those of `tfmp.metrics.detection`, `tfmp.evaluation.attacks` and
`tfmp.evaluation.adversarial`.
"""

import dataclasses

from tfmp import cli
from tfmp.commands.evaluate import PredictionConfig
from tfmp.errors import UserError

AXES = ("input", "ood", "adversarial")


@dataclasses.dataclass(frozen=True)
class Config(PredictionConfig):
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
        for name, most in {"linf": 255, "l2": 1e6}.items():
            if not all(0 < epsilon <= most for epsilon in getattr(self, name)):
                raise UserError(
                    f"Expected --{name} above 0 and up to {most:g}, in 1/255 of a pixel's range. "
                    f"Received: {','.join(map(str, getattr(self, name)))}."
                )
        if not self.linf and not self.l2 and "adversarial" in self.chosen:
            raise UserError("Expected --linf or --l2 for the axis adversarial. Received: neither.")
        wrong = [axis for axis in self.axes if axis not in AXES or self.axes.count(axis) > 1]
        if wrong:
            raise UserError(
                f"Expected --axes out of {', '.join(AXES)}, each once. Received: "
                f"{', '.join(wrong)}."
            )
        if self.ood and self.axes and "ood" not in self.axes:
            raise UserError(
                f"Expected --axes with ood where --ood is given. Received: {','.join(self.axes)}."
            )
        if "ood" in self.axes and not self.ood:
            raise UserError("Expected --ood with --axes=ood, such as --ood=mnist. Received: none.")

    @property
    def chosen(self):
        """The axes to run."""
        return self.axes or tuple(axis for axis in AXES if axis != "ood" or self.ood)


def run(config):
    """Tries all axes; returns what robustness.json holds."""
    from tfmp.commands.robustness import session  # it loads Keras, which --help need not

    if not config.model:
        raise UserError("Expected --model: a .keras file or the folder of a finished run.")
    return session.robustness(config)
