"""Evaluation of trained classifiers: what they predict, how right that is, and how robust."""

from tfmp.evaluation.adversarial import AttackSettings, attack, drawn, sample
from tfmp.evaluation.corruptions import (
    Baseline,
    Corrupted,
    summarize_corruptions,
    under_corruptions,
)
from tfmp.evaluation.groups import read_groups
from tfmp.evaluation.inputs import vary_inputs
from tfmp.evaluation.loading import Subject, load, under_policies, with_logits
from tfmp.evaluation.matching import data_for
from tfmp.evaluation.ood import detect, outside_data, predict_others
from tfmp.evaluation.outputs import made_with, make_workdir, new_workdir
from tfmp.evaluation.predictions import Predictions, forward, predict
from tfmp.evaluation.summary import compare, summarize

__all__ = [
    "AttackSettings",
    "Baseline",
    "Corrupted",
    "Predictions",
    "Subject",
    "attack",
    "compare",
    "data_for",
    "detect",
    "drawn",
    "forward",
    "load",
    "made_with",
    "make_workdir",
    "new_workdir",
    "outside_data",
    "predict",
    "predict_others",
    "read_groups",
    "sample",
    "summarize",
    "summarize_corruptions",
    "under_corruptions",
    "under_policies",
    "vary_inputs",
    "with_logits",
]
