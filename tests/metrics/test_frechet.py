"""The Frechet distance by hand, and against a second formula."""

import numpy as np
import pytest
from scipy import linalg

from tfmp.metrics.frechet import frechet_distance


def test_by_hand():
    one, other = np.array([[-1.0], [1.0]]), np.array([[2.0], [8.0]])
    # Means 0 and 5, deviations 1 and 3.
    assert frechet_distance(one, other) == pytest.approx(5**2 + (3 - 1) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0)


def test_against_the_root_of_the_product():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6))
    other = generator.normal(size=(70, 6)) @ generator.normal(size=(6, 6)) + 1
    s1, s2 = (np.cov(x, rowvar=False, bias=True) for x in (one, other))
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2)
    expected += np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)


def test_features_that_are_always_zero_count_for_nothing():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 30, 3))
    padded = [np.pad(x, ((0, 0), (0, 2))) for x in (one, other)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(one, other))
