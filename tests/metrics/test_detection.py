"""Detection of other data: by hand, by scikit-learn and by second formulas."""

import numpy as np
import pytest
import sklearn.metrics

from tfmp import errors
from tfmp.metrics import detection


def test_four_examples_by_hand():
    # Of the four pairs (inside, outside), three are in order.
    found = detection.detection([3.0, 1.0], [2.0, 0.0])
    assert found["auroc"] == 0.75 and found["share_inside"] == 0.5
    # Down to the 1st inside example precision is 1/1, down to the 2nd 2/3; likewise from below.
    assert found["aupr"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["aupr_out"] == pytest.approx((1 + 2 / 3) / 2)
    # To keep 95 % of two is to keep both, from 1 on: half of the others is above it.
    assert found["fpr_at_95_tpr"] == 0.5


def test_the_threshold_keeps_95_percent():
    inside = np.arange(20.0)  # 19 of 20 are from 1 on
    assert detection.detection(inside, [0.5, 0.9])["fpr_at_95_tpr"] == 0
    assert detection.detection(inside, [0.5, 1.0])["fpr_at_95_tpr"] == 0.5
    assert detection.detection(inside[:19], [0.5, 1.0])["fpr_at_95_tpr"] == 1  # all 19 are kept


@pytest.mark.parametrize(("inside", "outside"), [([1, 2], [0, -1]), ([0], [0]), ([0, 1], [2, 3])])
def test_all_none_and_ties(inside, outside):
    auroc = {2: 1.0, 1: 0.5, 0: 0.0}[(min(inside) > max(outside)) + (max(inside) >= min(outside))]
    assert detection.detection(inside, outside)["auroc"] == auroc


def test_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 500).round(1)
    truth = np.repeat([1, 0], [300, 500])
    both = np.concatenate([inside, outside])
    found = detection.detection(inside, outside)
    assert found["auroc"] == sklearn.metrics.roc_auc_score(truth, both)
    assert found["aupr"] == sklearn.metrics.average_precision_score(truth, both)
    assert found["aupr_out"] == sklearn.metrics.average_precision_score(1 - truth, -both)
    fpr, tpr, _ = sklearn.metrics.roc_curve(truth, both, drop_intermediate=False)
    assert found["fpr_at_95_tpr"] == fpr[tpr >= 0.95][0]
    pairs = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    assert found["auroc"] == pytest.approx(pairs)


def test_scores_by_hand():
    found = detection.scores(np.log([[0.5, 0.25, 0.25], [8.0, 1.0, 1.0]]))
    np.testing.assert_allclose(found["max_softmax"], np.log([0.5, 0.8]))
    np.testing.assert_allclose(found["energy"], np.log([1, 10]), atol=1e-12)
    np.testing.assert_allclose(found["max_logit"], np.log([0.5, 8]))


def test_certainty_is_no_tie():
    # Both probabilities round to 1 in float64.
    scores = detection.scores([[50.0, 0.0], [60.0, 0.0]])["max_softmax"]
    assert scores[0] < scores[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_unknown(bad):
    found = detection.scores([[0.0, bad], [0.0, 1.0]])
    for values in found.values():
        assert np.isnan(values).tolist() == [True, False]
    told = detection.detection(found["energy"], [1.0])
    assert np.isnan([told["auroc"], told["aupr"], told["aupr_out"], told["fpr_at_95_tpr"]]).all()
    assert told["share_inside"] == pytest.approx(2 / 3)


def test_mistakes():
    with pytest.raises(errors.UserError, match="Received: 0 and 1"):
        detection.detection([], [1.0])
    with pytest.raises(errors.UserError, match=r"Received: \[3\]"):
        detection.scores([1.0, 2.0, 3.0])


def test_placements_by_hand():
    inside, outside = detection.placements(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0, 3.0]))
    # Of the others 1 is below 1.0 and 1 equal; 3 are below 3.0 and 1 equal.
    np.testing.assert_array_equal(inside, [1.5 / 4, 3.5 / 4])
    np.testing.assert_array_equal(outside, [1.0, 0.75, 0.5, 0.25])


def test_the_mean_of_placements_is_the_auroc():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(9, size=50) + 1.0, rng.integers(9, size=80) + 0.0
    for placed in detection.placements(inside, outside):
        assert placed.mean() == pytest.approx(detection.detection(inside, outside)["auroc"])
