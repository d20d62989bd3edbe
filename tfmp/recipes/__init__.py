"""Runnable training programs, one module each: `python -m tfmp.recipes.NAME --help`."""

import importlib
import pkgutil

from tfmp import cli
from tfmp.errors import UserError

cli.prepare()

# Recipes with a choice of models and synthetic data: the model to measure on an accelerator, which
# fills it.
LARGE_MODELS = {
    "resnet": "resnet50",
    "vit": "vit_small",
    "image_classifier": "efficientnet_v2_s",
    "unet": "unet",
    "gpt": "gpt2_small",
    "text_classifier": "encoder_small",
}
# Examples in a step there, where an example is more than an image.
LARGE_BATCHES = {"gpt": 16}
# Height and width of images there, where they are not those of ImageNet.
LARGE_SIZES = {"gan": 64}


def names():
    """Names of the recipes."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def config_type(name):
    """The recipe's `Config`.

    Raises:
        UserError: No such recipe.
    """
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"Expected a recipe out of {known}. Received: {name!r}.")
    return importlib.import_module(f"tfmp.recipes.{name}").Config


def default_model(name):
    """The own default of --model, of a recipe with models to choose and synthetic data.

    Raises:
        UserError: No such recipe, or it can't.
    """
    config = config_type(name)
    if name not in LARGE_MODELS:
        known = ", ".join(sorted(LARGE_MODELS))
        raise UserError(
            f"Expected a recipe with a --model and synthetic data: {known}. Received: {name!r}."
        )
    return config.model


def takes_images(name):
    """Whether a recipe has images of a size to choose; errors as of `config_type`."""
    return hasattr(config_type(name), "image_size")


def has_synthetic(name):
    """Whether a recipe takes `--dataset=synthetic`; errors as of `config_type`."""
    return takes_images(name) or name in LARGE_MODELS


def large_model(name):
    """The recipe's model to measure on an accelerator: the own default of one that has no other.

    None for a recipe of one model, which has no --model.
    """
    return LARGE_MODELS.get(name) or getattr(config_type(name), "model", None)


def large_size(name):
    """Height and width of the images to measure on an accelerator; None: it takes no images."""
    return LARGE_SIZES.get(name, 224) if takes_images(name) else None


def large_batch(name):
    """Examples in a step of that model, to fill an accelerator of 40 GB or more."""
    return LARGE_BATCHES.get(name, 256)
