"""Runnable training programs, one module each: `python -m tfmp.recipes.NAME --help`."""

import importlib
import pkgutil

from tfmp import cli
from tfmp.errors import UserError

cli.prepare()

# The model to measure on an accelerator, where a recipe's own default is too small to fill it.
LARGE_MODELS = {"resnet": "resnet50", "vit": "vit_small"}


def names():
    """Names of the recipes."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def default_model(name):
    """The own default of --model, of a recipe of models for images of any size.

    Raises:
        UserError: No such recipe.
    """
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"Expected a recipe out of {known}. Received: {name!r}.")
    config = importlib.import_module(f"tfmp.recipes.{name}").Config
    if not hasattr(config, "model") or not hasattr(config, "image_size"):
        raise UserError(
            "Expected a recipe with --model and --image_size, whose step can be timed on images of "
            f"any size. Received: {name!r}."
        )
    return config.model


def large_model(name):
    """The recipe's model to measure on an accelerator.

    Raises:
        UserError: No such recipe.
    """
    usual = default_model(name)
    return LARGE_MODELS.get(name, usual)
