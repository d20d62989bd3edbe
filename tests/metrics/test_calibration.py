"""Calibration errors and temperature: by hand, by a second formula, and on known models."""

import itertools

import numpy as np
import pytest
import scipy.special

from tfmp import errors
from tfmp.metrics import bootstrap, calibration, classification


def two_classes(confidences, correct):
    """Outcomes of two classes of given confidences, of which some are right."""
    c = np.asarray(confidences, float)
    logits = np.stack([np.log(c), np.log1p(-c)], 1)
    return classification.outcomes(logits, np.where(correct, 0, 1))


def drawn(examples, temperature, seed=0):
    """Logits that are `temperature` times too large for the labels drawn of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, 5)) * 2
    p = scipy.special.softmax(logits, 1).cumsum(1)
    return logits * temperature, (rng.random((examples, 1)) > p).sum(1).clip(max=4)


def test_four_examples_by_hand():
    found = two_classes([0.55, 0.57, 0.91, 0.99], [True, False, True, False])
    # Of 5 bins, 0.4-0.6 holds two, right half the time at 0.56; 0.8-1 two, half right at 0.95.
    bins = calibration.equal_width_bins(found, 5)
    assert bins.count.tolist() == [0, 0, 2, 0, 2]
    np.testing.assert_allclose(bins.confidence[[2, 4]], [0.56, 0.95])
    assert bins.error == pytest.approx((2 * 0.06 + 2 * 0.45) / 4)
    # Each in a bin of its own: the mean of 0.45, 0.57, 0.09 and 0.99.
    assert calibration.adaptive_bins(found, 4).error == pytest.approx(2.1 / 4)
    assert calibration.adaptive_bins(found, 2).error == pytest.approx(bins.error)


def test_adaptive_bins_are_equally_full_and_keep_ties_together():
    logits, labels = drawn(1500, 1)
    bins = calibration.adaptive_bins(classification.outcomes(logits, labels))
    assert bins.count.tolist() == [100] * 15
    tied = calibration.adaptive_bins(two_classes([0.75] * 8 + [0.9] * 2, [True] * 10))
    assert sorted(tied.count[tied.count > 0].tolist()) == [2, 8]


@pytest.mark.parametrize("kind", ["equal_width_bins", "adaptive_bins"])
def test_a_second_formula(kind):
    logits, labels = drawn(777, 2)
    p = scipy.special.softmax(logits, 1)
    confidence, right = p.max(1), p.argmax(1) == labels
    edges = np.linspace(0, 1, 16)
    if kind == "adaptive_bins":
        edges[1:-1] = np.sort(confidence)[np.ceil(777 * edges[1:-1]).astype(int) - 1]
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = classification.outcomes(logits, labels)
    assert getattr(calibration, kind)(found).error == pytest.approx(error, rel=1e-9)


def test_full_certainty_is_in_the_last_bin():
    found = classification.outcomes([[1000.0, 0.0]] * 3, [0, 0, 1])
    assert calibration.equal_width_bins(found).count[-1] == 3
    assert calibration.equal_width_bins(found).error == pytest.approx(1 / 3)
    assert calibration.adaptive_bins(found).error == pytest.approx(1 / 3)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_is_found(factor):
    logits, labels = drawn(20_000, factor)
    fitted = calibration.temperature(logits, labels)
    assert fitted == pytest.approx(factor, rel=0.03)
    nll = [classification.outcomes(logits, labels, fitted * f).nll.mean() for f in (1, 0.99, 1.01)]
    assert nll[0] == min(nll)
    scaled = classification.outcomes(logits, labels, fitted)
    before = calibration.equal_width_bins(classification.outcomes(logits, labels)).error
    assert calibration.equal_width_bins(scaled).error < 0.02 < before


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        ([[1.0, 0.0], [2.0, 1.0]], "2 of which 2 are right"),
        ([[0.0, 1.0], [0.0, 1.0]], "2 of which 0 are right"),
        ([[np.nan, 0.0], [2.0, 1.0]], "1 of 2 validation examples"),
    ],
)
def test_no_temperature_is_best(logits, said):
    with pytest.raises(errors.UserError, match=said):
        calibration.temperature(logits, [0, 0])


def test_bins_of_what_is_not_finite_are_refused():
    found = classification.outcomes([[np.nan, 0.0], [1.0, 0.0]], [0, 0])
    for bins in (calibration.equal_width_bins, calibration.adaptive_bins):
        with pytest.raises(errors.UserError, match="1 of 2 examples"):
            bins(found)


def test_intervals_of_means_have_the_width_of_theory():
    rng = np.random.default_rng(3)
    columns = np.stack([rng.normal(5, 2, 400), rng.random(400) < 0.8], 1)
    intervals = bootstrap.intervals_of_means(columns, replicates=4000, seed=0)
    for column, (low, high) in zip(columns.T, intervals, strict=True):
        half = 1.96 * column.std() / 20
        assert low == pytest.approx(column.mean() - half, abs=half / 10)
        assert high == pytest.approx(column.mean() + half, abs=half / 10)
    again = bootstrap.intervals_of_means(columns, replicates=4000, seed=0)
    np.testing.assert_array_equal(intervals, again)
    chunked = bootstrap.CHUNK
    try:
        bootstrap.CHUNK = 4000
        assert bootstrap.intervals_of_means(columns, replicates=99, seed=0).shape == (2, 2)
    finally:
        bootstrap.CHUNK = chunked


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_interval_of_a_calibration_error_has_the_true_one(factor):
    """Of intervals at 95 %, in at least 32 of 40 test sets."""
    large = classification.outcomes(*drawn(200_000, factor, seed=99))
    true = calibration.equal_width_bins(large).error
    hits, floors = 0, []
    for seed in range(40):
        found = classification.outcomes(*drawn(400, factor, seed))
        bins = calibration.equal_width_bins(found)
        (low, high), by_chance = bootstrap.interval_of_error(found, bins, replicates=200, seed=0)
        hits += low <= true <= high
        floors.append((bins.error, by_chance))
    assert hits >= 32
    if factor == 1:
        errors_, chance = np.mean(floors, 0)
        assert chance == pytest.approx(errors_, rel=0.1)
