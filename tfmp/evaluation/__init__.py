"""Evaluation of trained classifiers: what they predict, and how right and calibrated that is."""

from tfmp.evaluation.groups import read_groups
from tfmp.evaluation.loading import Subject, load, with_logits
from tfmp.evaluation.matching import data_for
from tfmp.evaluation.predictions import Predictions, predict
from tfmp.evaluation.summary import compare, summarize

__all__ = [
    "Predictions",
    "Subject",
    "compare",
    "data_for",
    "load",
    "predict",
    "read_groups",
    "summarize",
    "with_logits",
]
