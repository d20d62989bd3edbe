"""Each metric of one prediction's rightness: by hand, by scikit-learn and by a second formula."""

import numpy as np
import pytest
import sklearn.metrics

from tfmp import errors
from tfmp.metrics import classification

# Probabilities of four examples that a person can check; their logs are logits.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
LABELS = np.array([0, 1, 1, 2])


@pytest.fixture
def found():
    return classification.outcomes(np.log(PROBABILITIES), LABELS)


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 7)) * 3, rng.integers(7, size=500)


def test_four_examples_by_hand(found):
    assert found.predicted.tolist() == [0, 1, 0, 2]
    assert found.correct.tolist() == [True, True, False, True]
    assert found.rank.tolist() == [0, 0, 1, 0]
    assert classification.top_k_accuracy(found, 1) == 0.75
    assert classification.top_k_accuracy(found, 2) == 1
    np.testing.assert_allclose(found.nll, -np.log([0.7, 0.5, 0.3, 0.8]))
    # (0.3² + 0.2² + 0.1²), (0.25² + 0.5² + 0.25²), (0.6² + 0.7² + 0.1²), (0.1² + 0.1² + 0.2²)
    np.testing.assert_allclose(found.brier, [0.14, 0.375, 0.86, 0.06])
    np.testing.assert_allclose(found.confidence, [0.7, 0.5, 0.6, 0.8])
    assert classification.confusion(found).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_as_in_scikit_learn(many, dtype):
    logits, labels = many[0].astype(dtype), many[1]
    found = classification.outcomes(logits, labels)
    wide = logits.astype("float64")
    probabilities = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    every = {"labels": range(7)}
    accuracy = sklearn.metrics.accuracy_score(labels, wide.argmax(1))
    assert classification.top_k_accuracy(found, 1) == pytest.approx(accuracy)
    if dtype != "float16":  # which has equal logits
        top5 = sklearn.metrics.top_k_accuracy_score(labels, wide, k=5, **every)
        assert classification.top_k_accuracy(found, 5) == pytest.approx(top5)
    nll = sklearn.metrics.log_loss(labels, probabilities, **every)
    assert found.nll.mean() == pytest.approx(nll, rel=1e-12)
    recall = sklearn.metrics.recall_score(labels, wide.argmax(1), average=None)
    matrix = classification.confusion(found)
    np.testing.assert_allclose(matrix.diagonal() / matrix.sum(1), recall)
    by_class = [
        sklearn.metrics.brier_score_loss(labels == k, probabilities[:, k]) for k in range(7)
    ]
    assert found.brier.mean() == pytest.approx(sum(by_class), rel=1e-12)


def test_second_formulas(many):
    logits, labels = many
    found = classification.outcomes(logits, labels, temperature=2.5)
    for i in range(0, 500, 50):
        row = [float(x) / 2.5 for x in logits[i]]
        total = sum(np.exp(x) for x in row)
        p = [np.exp(x) / total for x in row]
        assert found.nll[i] == pytest.approx(np.log(total) - row[labels[i]])
        assert found.brier[i] == pytest.approx(1 + sum(x * x for x in p) - 2 * p[labels[i]])
        assert found.rank[i] == sorted(row, reverse=True).index(row[labels[i]])


def test_certainty_is_not_cut_off():
    found = classification.outcomes([[1000.0, 0.0], [0.0, 60000.0]], [1, 1])
    np.testing.assert_array_equal(found.nll, [1000, 0])
    np.testing.assert_array_equal(found.brier, [2, 0])


def test_of_equal_logits_the_first_class_wins():
    found = classification.outcomes(np.zeros((3, 3)), [0, 1, 2])
    assert found.predicted.tolist() == [0, 0, 0] and found.rank.tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_wrong_and_never_averaged_away(bad):
    logits = np.log(PROBABILITIES)
    logits[0, 1] = bad
    given = logits.copy()
    found = classification.outcomes(logits, LABELS)
    np.testing.assert_array_equal(logits, given)
    assert found.finite.tolist() == [False, True, True, True]
    assert found.predicted[0] == -1 and not found.correct[0]
    assert [classification.top_k_accuracy(found, k) for k in (1, 3)] == [0.5, 0.75]
    assert np.isnan([found.nll.mean(), found.brier.mean(), found.confidence.mean()]).all()
    assert classification.confusion(found).tolist()[0] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((2, 3)), [0], r"Received: \[2, 3\] and \[1\]"),
        (np.zeros(3), [0, 1, 2], r"\[examples, classes\]"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one"),
        (np.zeros((2, 3)), [0, 3], "from 0 to 2, for 3 logits.*from 0 to 3"),
        (np.zeros((2, 3)), [0, -1], "from -1 to 0"),
        (np.zeros((2, 3)), [0.0, 1.0], "integer labels"),
    ],
)
def test_mistakes(logits, labels, said):
    with pytest.raises(errors.UserError, match=said):
        classification.outcomes(logits, labels)


def test_wilsons_interval_by_hand():
    # p = 1: from n / (n + z²) to 1, with z = 1.96.
    low, high = classification.interval_of_share(1.0, 10)
    assert low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6) and high == 1
    low, high = classification.interval_of_share(0.5, 100)
    assert (low + high) / 2 == pytest.approx(0.5)
    z = 1.959964
    assert high - 0.5 == pytest.approx(z * np.sqrt(25 / 100 + z**2 / 400) / 10 / (1 + z**2 / 100))
