"""Trains or fine-tunes any classifier of `keras.applications` in mixed precision.

Examples:
    python -m tfmp.recipes.image_classifier
"""

import dataclasses
import functools
import time

from tfmp import cli, models
from tfmp.models import applications
from tfmp.training import classification, fine_tuning

changed = functools.partial(cli.default, fine_tuning.FineTuningConfig)


@dataclasses.dataclass(frozen=True)
class Config(fine_tuning.FineTuningConfig):
    """Settings of the recipe; the defaults are for the embedded digits."""

    model: str = cli.flag(
        "mobilenet",
        "Backbone of keras.applications.",
        group="Model",
        choices=applications.MODELS,
    )
    alpha: float | None = cli.flag(
        None, "Factor on the width of the MobileNets; none: 1.", group="Model"
    )
    dropout: float = cli.flag(
        0.0, "Share of features dropped before the head's dense layer.", group="Training"
    )
    batch_norm_momentum: float | None = cli.flag(
        None,
        "Momentum of BatchNorm's moving statistics; none: the backbone's own.",
        group="Training",
    )


def prepare(config):
    """All that comes before the first step: (session, data, compiled classifier, epoch's steps)."""
    build = functools.partial(
        models.build,
        config.model,
        weights="imagenet" if config.weights == "imagenet" else None,
        alpha=config.alpha,
        dropout=config.dropout,
        batch_norm_momentum=config.batch_norm_momentum,
    )
    return fine_tuning.prepare("image_classifier", config, build, applications.load_weights)


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    return fine_tuning.run(config, prepare(config), began)


if __name__ == "__main__":
    cli.run(Config, run)
