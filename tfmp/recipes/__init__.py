"""Runnable training programs, one module each: `python -m tfmp.recipes.NAME --help`."""

import importlib
import pkgutil

from tfmp import cli
from tfmp.errors import UserError

cli.prepare()

# The model to measure on an accelerator, where a recipe's own default is too small to fill it.
LARGE_MODELS = {
    "resnet": "resnet50",
    "vit": "vit_small",
    "image_classifier": "efficientnet_v2_s",
}


def names():
    """Names of the recipes."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def default_model(name):
    """The recipe's own default of --model.

    Raises:
        UserError: No such recipe.
    """
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"Expected a recipe out of {known}. Received: {name!r}.")
    return importlib.import_module(f"tfmp.recipes.{name}").Config.model


def large_model(name):
    """The recipe's model to measure on an accelerator.

    Raises:
        UserError: No such recipe.
    """
    usual = default_model(name)
    return LARGE_MODELS.get(name, usual)
