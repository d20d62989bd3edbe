"""Trains a U-Net, which gives each pixel its class, in mixed precision.

Examples:
    python -m tfmp.recipes.unet
    python -m tfmp.recipes.unet --policy=float32 --upsampling=bilinear --dice=0.5
    python -m tfmp.recipes.unet --dataset=folder:PATH --image_size=128
    python -m tfmp.recipes.unet --flagfile=recipes/unet/oxford_pets_gpu1.flags --data_dir=DIR

Evidence (commands, versions and more in recipes/unet/README.md):
    digit_canvases, no flags, two cores of a busy shared CPU: mean IoU 0.465 on the test canvases,
    109 s (n = 1). Trivial models: logistic regression of a pixel's brightness 0.114, all background
    0.079.

References:
    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015.
    Milletari et al., "V-Net", 2016, section 3 (Dice loss).
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

import dataclasses
import functools
import time

from tfmp import cli, models
from tfmp.data import augment, masks
from tfmp.models import unet
from tfmp.training import config as shared
from tfmp.training import recipe
from tfmp.training.segmentation import Segmenter

changed = functools.partial(cli.default, shared.TrainingConfig)


@dataclasses.dataclass(frozen=True)
class Config(shared.TrainingConfig):
    """Settings of the recipe; the defaults are for the embedded canvases."""

    dataset: str = cli.flag(
        "digit_canvases",
        "digit_canvases (embedded), synthetic, oxford_iiit_pet of tensorflow-datasets, or "
        "folder:PATH, with images/ and masks/ of the same names.",
        group="Data",
    )
    image_size: int | None = cli.flag(
        None,
        "Height and width of the images in pixels; none: the data's own, 224 where they differ.",
        group="Data",
    )
    augmentation: str = cli.flag(
        "auto",
        "Random changes of images and masks alike; auto: what suits the data.",
        group="Data",
        choices=["auto", *augment.OF_MASKS],
    )
    model: str = cli.flag(
        "unet_small",
        "unet is the published one, with 64 channels at first; unet_small has 16.",
        group="Model",
        choices=unet.MODELS,
    )
    upsampling: str = cli.flag(
        "transposed",
        "transposed: by a learned 2x2 convolution, as published; bilinear: by interpolation.",
        group="Model",
        choices=unet.UPSAMPLINGS,
    )
    dice: float = cli.flag(
        0.0, "Weight of the Dice loss, added to the cross entropy; 0: none.", group="Training"
    )

    optimizer: str = changed("optimizer", "adamw")
    learning_rate: float = changed("learning_rate", 0.1)
    batch_size: int = changed("batch_size", 16)
    epochs: int = changed("epochs", 7)

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("image_size", lambda value: value > 0, "above 0")
        self.check("dice", lambda value: value >= 0, "0 or more")


def prepare(config):
    """All that comes before the first step: (session, data, compiled segmenter, epoch's steps)."""

    def build(data):
        return models.build(
            config.model,
            classes=len(data.class_names),
            input_shape=data.input_shape,
            upsampling=config.upsampling,
        )

    def learn(model, data):
        name = data.augmentation if config.augmentation == "auto" else config.augmentation
        return Segmenter(model, augment.AUGMENTATIONS[name], seed=config.seed, dice=config.dice)

    load = functools.partial(
        masks.load,
        config.dataset,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        validation_fraction=config.validation_fraction,
        image_size=config.image_size,
    )
    return recipe.prepare("unet", config, load=load, build=build, learn=learn)


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    return recipe.run(config, prepare(config), began)


if __name__ == "__main__":
    cli.run(Config, run)
