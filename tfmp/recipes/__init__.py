"""Runnable training programs, one module each: `python -m tfmp.recipes.NAME --help`."""

from tfmp import cli

cli.prepare()
