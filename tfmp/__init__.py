"""tfmp: mixed-precision training recipes and tools for Keras 3 on TensorFlow.

Importing tfmp is cheap: it loads neither Keras nor TensorFlow before a name is used.
"""

import importlib

__version__ = "0.1.0"

_SUBMODULES = (
    "cli",
    "commands",
    "data",
    "distribution",
    "doctor",
    "errors",
    "evaluation",
    "hardware",
    "loss_scale",
    "metrics",
    "models",
    "policies",
    "recipes",
    "report",
    "training",
)

_NAMES = {
    "LossScaleGuard": "loss_scale",
    "LossScaleLogger": "loss_scale",
    "LossScaleOptimizer": "loss_scale",
    "Tracer": "training",
    "accelerate": "training",
    "compile": "loss_scale",
    "load": "training",
    "wrap": "loss_scale",
}

__all__ = ["__version__", *_SUBMODULES, *_NAMES]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"tfmp.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"tfmp.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'tfmp' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
