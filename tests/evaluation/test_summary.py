"""Summaries and comparisons of predictions, by hand."""

import math

import numpy as np
import pytest

from tfmp import errors, evaluation
from tfmp.evaluation import plots
from tfmp.metrics import calibration, classification

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
LOGITS = np.log(PROBABILITIES).astype("float32")
LABELS = np.array([0, 1, 1, 1])
NAMES = ("cat", "dog", "emu")


def predictions(logits=LOGITS, labels=LABELS):
    return evaluation.Predictions(np.asarray(logits, "float32"), np.asarray(labels))


def test_four_examples_by_hand():
    groups = np.array(["old", "new", "new", "old"])
    values, intervals = evaluation.summarize(predictions(), NAMES, groups=groups, replicates=200)
    assert (values["examples"], values["non_finite"], values["accuracy"]) == (4, 0, 0.75)
    assert values["nll"] == pytest.approx(-np.log(0.7 * 0.5 * 0.3 * 0.8) / 4, rel=1e-6)
    assert values["brier"] == pytest.approx((0.14 + 0.375 + 0.86 + 0.06) / 4, rel=1e-6)
    # Bins of 1/15: 0.7, 0.5, 0.6 and 0.8 are each alone.
    assert values["ece"] == pytest.approx((0.3 + 0.5 + 0.6 + 0.2) / 4, rel=1e-6)
    per_class = values["per_class_accuracy"]
    assert per_class["cat"] == 1 and per_class["dog"] == pytest.approx(2 / 3)
    assert math.isnan(per_class["emu"])
    assert values["worst_class"] == {"name": "dog", "accuracy": per_class["dog"], "examples": 3}
    assert values["per_group_accuracy"] == {"new": 0.5, "old": 1.0}
    assert values["worst_group"] == {"name": "new", "accuracy": 0.5, "examples": 2}
    assert set(intervals["per_class_accuracy"]) == {"cat", "dog"}
    for metric in ("accuracy", "nll", "brier"):
        low, high = intervals[metric]
        assert low <= values[metric] <= high
    assert "top5_accuracy" not in values
    bare, few = evaluation.summarize(predictions(), NAMES, replicates=0)
    assert set(few) == {"per_class_accuracy"}
    assert bare["ece"] == values["ece"] and "ece_if_calibrated" not in bare


def test_top5_from_six_classes_on():
    logits = np.tile(np.arange(6.0), (2, 1))
    values, intervals = evaluation.summarize(predictions(logits, [0, 1]), range(6), replicates=9)
    assert values["top5_accuracy"] == 0.5 and "top5_accuracy" in intervals


def test_the_temperature_changes_calibration_alone():
    cold, _ = evaluation.summarize(predictions(), NAMES, temperature=1.0, replicates=0)
    hot, _ = evaluation.summarize(predictions(), NAMES, temperature=5.0, replicates=0)
    assert hot["accuracy"] == cold["accuracy"] and hot["nll"] > cold["nll"]


def test_what_is_not_finite_is_counted_and_not_averaged_away():
    logits = LOGITS.copy()
    logits[0, 2] = np.nan
    values, intervals = evaluation.summarize(predictions(logits), NAMES)
    assert (values["non_finite"], values["accuracy"]) == (1, 0.5)
    assert all(math.isnan(values[name]) for name in ("nll", "brier", "ece", "adaptive_ece"))
    assert values["per_class_accuracy"]["cat"] == 0 and set(intervals) == {"per_class_accuracy"}


def test_another_number_of_classes():
    with pytest.raises(errors.UserError, match=r"data set's 2 classes. Received: 3"):
        evaluation.summarize(predictions(), ("cat", "dog"))


def test_a_comparison_by_hand():
    other = LOGITS.copy()
    other[2] = np.log([0.3, 0.6, 0.1])  # becomes right
    other[3] = other[3][::-1] + [0, 0, 9]  # becomes wrong
    other[0] += 0.5  # which changes no probability
    found = evaluation.compare(predictions(other), predictions())
    assert (found["flips"], found["became_wrong"], found["became_right"]) == (2, 1, 1)
    assert found["flipped_share"] == 0.5 and found["compared"] == 4
    assert found["largest_logit_difference"] == pytest.approx(9)
    mean = (3 * 0.5 + 2 * math.log(2) + 9) / 12
    assert found["mean_logit_difference"] == pytest.approx(mean, rel=1e-5)
    same = evaluation.compare(predictions(LOGITS + 1), predictions())
    assert same["flips"] == 0 and same["relative_logit_difference"] == pytest.approx(0, abs=1e-6)
    scaled = evaluation.compare(predictions(LOGITS * 1.5), predictions())
    assert scaled["relative_logit_difference"] == pytest.approx(0.5, rel=1e-5)


def test_a_comparison_with_what_is_not_finite():
    wrong = LOGITS.copy()
    wrong[0] = np.nan
    found = evaluation.compare(predictions(wrong), predictions())
    assert (found["compared"], found["flips"], found["became_wrong"]) == (3, 1, 1)
    assert found["largest_logit_difference"] == 0
    none = evaluation.compare(predictions(np.full((4, 3), np.nan)), predictions())
    assert none["compared"] == 0 and math.isnan(none["relative_logit_difference"])


def test_other_examples_are_not_compared():
    for other in (predictions(LOGITS[:3], LABELS[:3]), predictions(labels=LABELS[::-1])):
        with pytest.raises(errors.UserError, match="same examples"):
            evaluation.compare(other, predictions())


@pytest.mark.parametrize("classes", [3, 25, 60])
def test_pictures(tmp_path, classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(99, classes)), rng.integers(classes, size=99)
    found = classification.outcomes(logits, labels)
    plots.reliability(calibration.equal_width_bins(found), tmp_path / "r.png", "a$b_$^c")
    logits[0] = np.nan
    matrix = classification.confusion(classification.outcomes(logits, labels))
    names = [f"${i}-${i}_^" for i in range(classes)]
    plots.confusion(matrix, names, tmp_path / "c.png", "a$b_$^c")
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["c.png", "r.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
