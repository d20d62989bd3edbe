"""Training: the settings, the step, the loop and the files of a run."""

from tfmp.training.accelerate import accelerate
from tfmp.training.classification import Classifier
from tfmp.training.config import TrainingConfig
from tfmp.training.learner import Learner, compile_learner
from tfmp.training.loading import load
from tfmp.training.loop import Fitted, fit
from tfmp.training.session import Session, start
from tfmp.training.tracer import Tracer

__all__ = [
    "Classifier",
    "Fitted",
    "Learner",
    "Session",
    "Tracer",
    "TrainingConfig",
    "accelerate",
    "compile_learner",
    "fit",
    "load",
    "start",
]
