"""Training: the settings, the step, the loop and the files of a run."""

from tfmp.training.accelerate import accelerate
from tfmp.training.config import TrainingConfig
from tfmp.training.loading import load
from tfmp.training.loop import Fitted, fit
from tfmp.training.session import Session, start
from tfmp.training.step import Classifier, compile_classifier

__all__ = [
    "Classifier",
    "Fitted",
    "Session",
    "TrainingConfig",
    "accelerate",
    "compile_classifier",
    "fit",
    "load",
    "start",
]
