"""Evaluation of trained classifiers: what they predict, and how right and calibrated that is."""

from tfmp.evaluation.groups import read_groups
from tfmp.evaluation.loading import Subject, load
from tfmp.evaluation.predictions import Predictions, predict, under
from tfmp.evaluation.summary import compare, summarize

__all__ = [
    "Predictions",
    "Subject",
    "compare",
    "load",
    "predict",
    "read_groups",
    "summarize",
    "under",
]
