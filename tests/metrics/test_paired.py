"""McNemar's exact test: by hand, and what it is on one set."""

import numpy as np
import pytest

from tfmp import errors
from tfmp.metrics import paired


def test_by_hand():
    # Of three examples where just one is right, the first has none: (1/2)^3.
    first, second = np.array([1, 0, 0, 0, 0], bool), np.array([1, 1, 1, 1, 0], bool)
    assert paired.fewer_right(first, second) == pytest.approx(1 / 8)
    assert paired.fewer_right(second, first) == pytest.approx(1)
    assert paired.differ(first, second) == paired.differ(second, first) == pytest.approx(1 / 4)


def test_equal_results_differ_by_chance():
    right = np.arange(10) < 4
    assert paired.fewer_right(right, right) == paired.differ(right, right) == 1


def test_it_is_right_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [paired.differ(*(rng.random((2, 200)) < 0.7)) for _ in range(1000)]
    assert np.mean(np.array(found) < 0.05) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_mistakes():
    with pytest.raises(errors.UserError, match=r"\[2\] and \[3\]"):
        paired.differ([True, False], [True, False, True])
