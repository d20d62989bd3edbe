"""Two kinds of runs: equal ones are not called different, and a harm is found and named."""

import math

import numpy as np
import pytest

from tfmp import errors
from tfmp.evaluation import Predictions, parity

NAMES = [f"class {index}" for index in range(10)]


def labels_of(examples):
    return np.arange(examples) % len(NAMES)


def kinds(rng, *, examples=2000, runs=5, harm=0.0, by_run=0.3, by_example=1.5, whim=1.0):
    """Predictions of two kinds of runs; the other's class 3 loses `harm` of its examples.

    Examples differ in difficulty, runs in what they make of each class, and by a whim in what they
    make of each example.
    """
    labels = labels_of(examples)
    difficulty = by_example * rng.normal(size=examples)
    found = []
    for kind in range(2):
        of_kind = []
        for _ in range(runs):
            skill = 3.0 + by_run * rng.normal(size=len(NAMES))
            logits = whim * rng.normal(size=(examples, len(NAMES)))
            logits[np.arange(examples), labels] += skill[labels] - difficulty
            if kind and harm:
                right = (logits.argmax(1) == labels) & (labels == 3)
                chosen = rng.choice(np.flatnonzero(right), round(harm * (labels == 3).sum()), False)
                logits[chosen, 3] = -10.0
            of_kind.append(Predictions(logits.astype("float32"), labels))
        found.append(of_kind)
    return found


def rows(found, verdict):
    return [parity.title(row) for row in found["tests"] if row["verdict"] == verdict]


def simulate(count, seed, **settings):
    rng = np.random.default_rng(seed)
    return [parity.compare(*kinds(rng, **settings), NAMES, paired=True) for _ in range(count)]


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="some"), pytest.param(2000, marks=pytest.mark.slow, id="many")]
)
def test_equal_kinds_are_seldom_called_different(count):
    wrong = np.mean([found["verdict"] == "different" for found in simulate(count, seed=12)])
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / count)


def of_class_3(count, **settings):
    rng = np.random.default_rng(9)
    for _ in range(count):
        reference, _ = kinds(rng, examples=10_000, **settings)
        yield [(run.logits[3::10].argmax(1) == 3).mean() for run in reference]


def test_a_harm_to_one_class_is_found_and_named():
    found = simulate(25, seed=2, harm=0.03, examples=10_000, by_run=0.1, whim=0.3)
    spreads = [np.std(accuracies, ddof=1) for accuracies in of_class_3(20, by_run=0.1, whim=0.3)]
    assert 0.006 < np.mean(spreads) < 0.008
    named = [x["verdict"] == "different" and "class 3" in x["reason"] for x in found]
    assert np.mean(named) >= 0.95
    others = [row for x in found for row in rows(x, "different") if "class 3" not in row]
    assert len([row for row in others if row.startswith("class accuracy")]) <= 4


def test_equal_kinds_within_wide_margins_are_equivalent():
    margins = parity.Margins(accuracy=0.02, part=0.08, ece=0.05)
    found = parity.compare(
        *kinds(np.random.default_rng(3), by_run=0.05), NAMES, paired=True, margins=margins
    )
    assert found["verdict"] == "equivalent" and "all 12 differences" in found["reason"]


def test_too_few_runs_and_how_many_would_do():
    found = parity.compare(*kinds(np.random.default_rng(4), runs=3), NAMES)
    assert found["verdict"] == "not enough runs" and "of each would do" in found["reason"]
    accuracy = found["tests"][0]
    assert accuracy["runs_needed"] > 3 and accuracy["verdict"] == "open"


def test_every_number_by_hand():
    """Four examples of two classes, three runs; the other kind is wrong on the last example."""
    labels = np.array([0, 0, 1, 1])
    right = np.array([[2.0, 0], [2, 0], [0, 2], [0, 2]])
    wrong = right.copy()
    wrong[3] = [2, 0]
    reference = [Predictions(right, labels)] * 3
    found = parity.compare(reference, [Predictions(wrong, labels)] * 3, ["a", "b"])
    tests = {parity.title(row): row for row in found["tests"]}
    assert list(tests) == ["accuracy", "ece", "class accuracy of a", "class accuracy of b"]
    assert tests["accuracy"]["means"] == [1.0, 0.75]
    assert tests["class accuracy of b"]["difference"] == -0.5
    # All are sure by 1 / (1 + e^-2).
    sure = 1 / (1 + math.exp(-2))
    assert tests["ece"]["means"] == pytest.approx([1 - sure, sure - 0.75])
    worst = {row["metric"]: row["means"] for row in found["also"]}["worst_class_accuracy"]
    assert worst == [1.0, 0.5]
    expected = {"between_kinds": 0.25, "among_reference": 0.0, "among_other": 0.0}
    assert found["flips"] == expected | {"became_wrong": 0.25}


def test_groups_are_tests_too():
    reference, other = kinds(np.random.default_rng(5), examples=400)
    groups = np.where(np.arange(400) < 100, "old", "new")
    for run in other:
        run.logits[:100] = -run.logits[:100]
    found = parity.compare(reference, other, NAMES, groups=groups)
    assert "group accuracy of old" in rows(found, "different")
    assert "group accuracy of new" not in rows(found, "different")
    assert found["also"][-1]["metric"] == "worst_group_accuracy"


def test_pairs_of_one_seed_share_their_luck():
    """Runs that differ much by the seed, and little by the kind."""
    rng = np.random.default_rng(6)
    reference, _ = kinds(rng, by_run=0.5)
    other = [
        Predictions(run.logits + 0.1 * rng.normal(size=run.logits.shape), run.labels)
        for run in reference
    ]
    paired, apart = (
        parity.compare(reference, other, NAMES, paired=paired)["tests"][0]["interval"]
        for paired in (True, False)
    )
    assert paired[1] - paired[0] < (apart[1] - apart[0]) / 2


def test_logits_that_are_not_finite():
    reference, other = kinds(np.random.default_rng(7), examples=100, runs=3)
    other[1].logits[:2, 0] = np.nan
    found = parity.compare(reference, other, NAMES)
    assert found["verdict"] == "different" and "not finite in 2 examples" in found["reason"]
    assert found["non_finite"] == [[0, 0, 0], [0, 2, 0]]
    assert "ece" not in {row["metric"] for row in found["tests"]}
    with pytest.raises(errors.UserError, match="reference runs with finite logits"):
        parity.compare(other, reference, NAMES)


def test_runs_of_other_examples_are_refused():
    reference, other = kinds(np.random.default_rng(8), examples=100, runs=3)
    other[2] = Predictions(other[2].logits, other[2].labels[::-1])
    with pytest.raises(errors.UserError, match="the same examples"):
        parity.compare(reference, other, NAMES)
