"""Different, equivalent, or not enough runs: by hand, next to SciPy, and held against chance."""

import math

import numpy as np
import pytest
import scipy.stats

from tfmp import errors
from tfmp.metrics import equivalence
from tfmp.metrics.equivalence import Comparison, Spread, compare_means, compare_values, holm


def test_by_hand():
    # Means 2 and 4, squares 2 + 2 over 4 degrees of freedom, error sqrt(1 * (1/3 + 1/3)).
    found = compare_values([1, 2, 3], [3, 4, 5])
    assert (found.difference, found.spread) == (2.0, Spread(1.0, 4))
    assert found.error == pytest.approx(math.sqrt(2 / 3))
    # Student's table: t(0.975, 4) = 2.776.
    assert found.interval() == pytest.approx([2 - 2.7764451 * 0.8164966, 2 + 2.7764451 * 0.8164966])


def test_as_scipy_does():
    rng = np.random.default_rng(0)
    for one, other in ((3, 3), (5, 4), (10, 20)):
        a, b = rng.normal(size=one), rng.normal(0.5, size=other)
        found = compare_values(a, b)
        theirs = scipy.stats.ttest_ind(b, a)
        assert found.p_different == pytest.approx(theirs.pvalue)
        assert found.interval() == pytest.approx(list(theirs.confidence_interval()))
        margin = 2.0
        each = [
            scipy.stats.ttest_ind(b + margin, a, alternative="greater").pvalue,
            scipy.stats.ttest_ind(b - margin, a, alternative="less").pvalue,
        ]
        assert found.p_equivalent(margin) == pytest.approx(max(each))


def test_runs_that_agree_exactly():
    same = compare_values([0.5] * 3, [0.5] * 3)
    assert (same.p_different, same.p_equivalent(0.01)) == (1.0, 0.0)
    other = compare_values([0.5] * 3, [0.6] * 3)
    assert (other.p_different, other.p_equivalent(0.01)) == (0.0, 1.0)


def test_mistakes_are_named():
    with pytest.raises(errors.UserError, match=r"3 runs or more .*: 2 and 3"):
        compare_values([1, 2], [1, 2, 3])
    with pytest.raises(errors.UserError, match="finite"):
        compare_values([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(errors.UserError, match="the same examples"):
        compare_means(np.zeros((3, 4)), np.zeros((3, 5)))


# --- runs and examples


def tables(rng, runs, examples, run=0.0, example=0.0, kind=0.0, noise=1.0):
    """[runs, examples] of two kinds, with effects of the run, the example and kind by example."""
    shared = example * rng.normal(size=examples)
    return [
        shared
        + kind * rng.normal(size=examples)
        + run * rng.normal(size=(runs, 1))
        + noise * rng.normal(size=(runs, examples))
        for _ in range(2)
    ]


def test_the_variance_is_that_of_all_one_could_have_drawn():
    """New runs and new examples each time: the spread of the differences is what is said of one."""
    rng = np.random.default_rng(1)
    effects = {"run": 0.2, "example": 2.0, "kind": 0.8}
    found = [compare_means(*tables(rng, 4, 60, **effects)) for _ in range(2000)]
    said = np.mean([x.error**2 for x in found])
    by_hand = 0.2**2 * 2 / 4 + 2 * 0.8**2 / 60 + 2 * 1 / 4 / 60
    assert said == pytest.approx(by_hand, rel=0.05)
    assert np.var([x.difference for x in found]) == pytest.approx(by_hand, rel=0.1)
    wrong = np.mean([x.p_different < 0.05 for x in found])
    assert wrong < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


def test_pooling_runs_as_if_independent_would_be_wrong():
    """Why runs are the sample: the plain test on all values calls equal kinds different."""
    rng = np.random.default_rng(2)
    pooled = []
    for _ in range(300):
        a, b = tables(rng, 4, 200, run=0.3)
        pooled.append(scipy.stats.ttest_ind(a.ravel(), b.ravel()).pvalue < 0.05)
    assert np.mean(pooled) > 0.3


def test_near_the_bootstrap_of_runs_and_examples():
    rng = np.random.default_rng(3)
    a, b = tables(rng, 40, 100, run=0.3, example=1.0, kind=0.5, noise=0.3)
    drawn = []
    for _ in range(3000):
        chosen = rng.integers(100, size=100)
        means = [x[rng.integers(40, size=40)][:, chosen].mean() for x in (a, b)]
        drawn.append(means[1] - means[0])
    found = compare_means(a, b)
    assert found.error == pytest.approx(np.std(drawn), rel=0.1)


def test_one_example():
    found = compare_means([[0], [1], [1]], [[1], [1], [1]])
    assert found.spread.between_examples == 0 and found.difference == pytest.approx(1 / 3)


# --- many parts


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def of_variances(variances, freedom=4):
    return [Comparison((0.0, 1.0), (3, 3), Spread(v, freedom)) for v in variances]


def test_alike_variances_become_one():
    found = equivalence.share_spread(of_variances([1.0, 1.1, 0.9, 1.0]), [0.0] * 4)
    assert [x.spread for x in found] == [Spread(1.0, 16)] * 4


def test_what_truly_differs_stays_different():
    rng = np.random.default_rng(4)
    true = np.where(np.arange(2000) % 2, 1.0, 100.0)
    found = equivalence.share_spread(
        of_variances(true * rng.chisquare(20, 2000) / 20, 20), [0] * 2000
    )
    shared = np.array([x.spread.between_runs for x in found])
    assert shared[0::2].mean() / shared[1::2].mean() > 30
    assert 20 < found[0].spread.freedom < 30


def test_the_common_variance_is_found():
    """Variances drawn as in Smyth's model: 8 degrees of freedom's worth of knowing it to be 2."""
    rng = np.random.default_rng(5)
    true = 2 * 8 / rng.chisquare(8, 20_000)
    drawn = true * rng.chisquare(4, 20_000) / 4
    common, freedom = equivalence._common_variance(drawn, 4)
    assert common == pytest.approx(2, rel=0.05) and freedom == pytest.approx(8, rel=0.15)


def test_a_variance_of_nothing_has_a_floor():
    found = equivalence.share_spread(of_variances([0.0, 0.0]), [1e-6, 1e-6])
    assert all(0 < x.p_different < 1e-3 for x in found)
    (alone,) = equivalence.share_spread(of_variances([3.0]), [0.0])
    assert alone.spread == Spread(3.0, 4)


# --- how many, how small


def test_as_many_runs_as_it_says_do():
    rng = np.random.default_rng(6)
    found = Comparison((0.9, 0.9), (3, 3), Spread(0.004**2, 4))
    runs = found.runs_needed(0.005)
    verdicts = [
        compare_values(*rng.normal(0.9, 0.004, size=(2, runs))).p_equivalent(0.005) < 0.05
        for _ in range(2000)
    ]
    assert 0.76 < np.mean(verdicts) < 0.9
    fewer = [
        compare_values(*rng.normal(0.9, 0.004, size=(2, runs - 2))).p_equivalent(0.005) < 0.05
        for _ in range(2000)
    ]
    assert np.mean(fewer) < 0.8
    too_few_examples = Comparison((0.9, 0.9), (3, 3), Spread(0.004**2, 4, 0.004**2))
    assert too_few_examples.runs_needed(0.005) is None


def test_the_smallest_visible_difference_is_seen_in_four_of_five():
    rng = np.random.default_rng(7)
    step = Comparison((0, 0), (5, 5), Spread(1.0, 8)).smallest_visible()
    seen = [
        compare_values(rng.normal(0, 1, 5), rng.normal(step, 1, 5)).p_different < 0.05
        for _ in range(2000)
    ]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
