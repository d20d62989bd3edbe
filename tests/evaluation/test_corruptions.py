"""Errors on corrupted images, and mCE, of a tiny set that a person can check."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tfmp import errors, evaluation
from tfmp.data import pipeline

# Four images of labels 0 and 1: which are predicted 1 under each corruption and severity.
LABELS = np.array([0, 1, 0, 1])
PREDICTED = {
    "fog": [[0, 1, 0, 1], [1, 1, 0, 1]],
    "snow": [[0, 1, 0, 0], [1, 0, 1, 0]],
    "saturate": [[0, 0, 0, 1], [0, 0, 0, 1]],
}


@dataclasses.dataclass
class Images:
    """A corrupted set whose images are the predictions themselves, 0 or 1; 9 breaks the model."""

    predicted: dict
    labels: dict = dataclasses.field(default_factory=dict)
    severities: tuple = (2, 4)
    examples: int = 4

    @property
    def corruptions(self):
        return tuple(self.predicted)

    def batches(self, name, batch_size):
        images = np.uint8(self.predicted[name]).reshape(-1, 1, 1, 1)
        labels = self.labels.get(name, np.tile(LABELS, 2))
        return pipeline.in_memory_evaluation(images, labels)(batch_size)


def logits(images):
    one = tf.cast(images[:, 0, 0, 0], tf.float32)
    return 2 * tf.stack([1 - one, tf.where(one > 8, math.nan, one)], 1)


def errors_of(predicted, baseline=None, clean=0.0):
    seen = evaluation.under_corruptions(logits, Images(predicted), 3)
    return evaluation.summarize_corruptions(seen, (2, 4), clean, baseline)


def test_errors_by_hand():
    found = errors_of(PREDICTED)
    assert found["examples"] == 4 and found["non_finite"] == 0 and found["corruptions"] == 2
    assert found["errors"] == {
        "fog": {"2": 0.0, "4": 0.25},
        "snow": {"2": 0.25, "4": 1.0},
        "saturate": {"2": 0.25, "4": 0.25},
    }
    assert found["mean_errors"] == {"fog": 0.125, "snow": 0.625, "saturate": 0.25}
    assert found["mean_error"] == 0.375 and found["extra_mean_error"] == 0.25
    assert "baseline" not in found and "mce" not in found["intervals"]
    # Of the four images under fog and snow 1/2, 1/4, 1/4 and 1/2 are wrong.
    low, high = found["intervals"]["mean_error"]
    assert 0.25 <= low < 0.375 < high <= 0.5


def test_mce_by_hand():
    theirs = {"fog": [0.25, 0.25], "snow": [0.5, 0.75], "saturate": [0.5, 0.5]}
    baseline = evaluation.Baseline("theirs", theirs, 0.125)
    found = errors_of(PREDICTED, baseline, clean=0.0)["baseline"]
    assert found["ce"] == pytest.approx({"fog": 0.5, "snow": 1.0, "saturate": 0.5})
    assert found["mce"] == pytest.approx(0.75)
    # (0.25 - 0) / (0.5 - 0.25), (1.25 - 0) / (1.25 - 0.25), (0.5 - 0) / (1 - 0.25)
    expected = {"fog": 1.0, "snow": 1.25, "saturate": 2 / 3}
    assert found["relative_ce"] == pytest.approx(expected)
    assert found["relative_mce"] == pytest.approx(1.125)
    # Of itself as the baseline all is 1, and the interval is around it.
    itself = evaluation.Baseline(
        "itself", {k: list(v.values()) for k, v in errors_of(PREDICTED)["errors"].items()}, 0.0
    )
    again = errors_of(PREDICTED, itself)
    assert again["baseline"]["mce"] == again["baseline"]["relative_mce"] == 1
    low, high = again["intervals"]["mce"]
    assert low < 1 < high


def test_a_baseline_without_errors():
    baseline = evaluation.Baseline("perfect", {name: [0.0, 0.0] for name in PREDICTED}, 0.0)
    found = errors_of(PREDICTED, baseline)
    assert math.isnan(found["baseline"]["mce"]) and "mce" not in found["intervals"]


def test_what_is_not_finite_is_wrong_and_counted():
    found = errors_of({"fog": [[9, 9, 0, 1], [0, 1, 0, 9]]})
    assert found["errors"]["fog"] == {"2": 0.5, "4": 0.25} and found["non_finite"] == 3
    assert math.isnan(found["extra_mean_error"])


def test_sets_of_other_examples_are_refused():
    other = Images(PREDICTED, labels={"snow": np.tile(LABELS[::-1], 2)})
    with pytest.raises(errors.UserError, match=r"same examples.*snow"):
        evaluation.under_corruptions(logits, other, 4)
