"""Trains or fine-tunes any classifier of `keras.applications` in mixed precision.

Examples:
    python -m tfmp.recipes.image_classifier
    python -m tfmp.recipes.image_classifier --model=densenet121 --dataset=cifar10
    python -m tfmp.recipes.image_classifier --model=convnext_tiny --weights=convnext_notop.h5
        --dataset=folder:PATH --image_size=224 --head_epochs=3 --freeze_batch_norm
    python -m tfmp.recipes.image_classifier --model=efficientnet_v2_s --weights=imagenet ...

With --weights the head trains alone first, then all weights (--head_epochs). `imagenet` lets Keras
download its weights; that was not tried here, for want of a network. A file may be Keras' own
weights without top, or the model.keras of a run, also one for other classes.

Evidence (commands, versions and more in recipes/image_classifier/README.md):
    digits, no flags, two cores of a shared CPU: test accuracy 0.964 and 0.969 (two seeds), 92 s
    where little else ran, 39 of them to the first step.
    Trivial models on the same split: logistic regression of the pixels 0.900, nearest centroid
    0.850.

References:
    https://keras.io/api/applications/ (the models, and the papers that they are from).
    Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019 (a head on fixed
        features, and fine-tuning).
"""

import dataclasses
import functools
import time

from tfmp import cli, models
from tfmp.models import applications
from tfmp.training import fine_tuning

changed = functools.partial(cli.default, fine_tuning.FineTuningConfig)


@dataclasses.dataclass(frozen=True)
class Config(fine_tuning.FineTuningConfig):
    """Settings of the recipe; the defaults are for the embedded digits."""

    model: str = cli.flag(
        "mobilenet_v3_micro",
        "Backbone of keras.applications; mobilenet_v3_micro is for images of 8 to 32 pixels.",
        group="Model",
        choices=applications.MODELS,
    )
    alpha: float | None = cli.flag(
        None,
        "Factor on the width of the MobileNets; none: 1, and 0.35 of mobilenet_v3_micro.",
        group="Model",
    )
    dropout: float = cli.flag(
        0.0, "Share of features dropped before the head's dense layer.", group="Training"
    )
    batch_norm_momentum: float | None = cli.flag(
        None,
        "Momentum of BatchNorm's moving statistics; none: the backbone's own, up to 0.999, which "
        "wants thousands of steps.",
        group="Training",
    )

    optimizer: str = changed("optimizer", "adamw")
    learning_rate: float = changed("learning_rate", 2e-2)
    label_smoothing: float = changed("label_smoothing", 0.0)
    epochs: int = changed("epochs", 14)

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("alpha", lambda value: value > 0, "above 0")
        for name in ("dropout", "batch_norm_momentum"):
            self.check(name, lambda value: 0 <= value < 1, "from 0 to below 1")


def prepare(config):
    """All that comes before the first step: (session, data, compiled classifier, epoch's steps)."""
    options = {
        "weights": "imagenet" if config.weights == "imagenet" else None,
        "alpha": config.alpha,
        "dropout": config.dropout,
        "batch_norm_momentum": config.batch_norm_momentum,
    }
    # What isn't given is the model's own.
    given = {name: value for name, value in options.items() if value is not None}
    build = functools.partial(models.build, config.model, **given)
    return fine_tuning.prepare("image_classifier", config, build, applications.load_weights)


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    return fine_tuning.run(config, prepare(config), began)


if __name__ == "__main__":
    cli.run(Config, run)
