"""Corruption errors of numbers that a person can check."""

import math

import pytest

from tfmp.metrics import corruption

# Two corruptions of ImageNet-C at two severities, and an extra one.
OURS = {"fog": [0.2, 0.4], "snow": [0.1, 0.2], "saturate": [0.5, 0.5]}
THEIRS = {"fog": [0.3, 0.9], "snow": [0.2, 0.2], "saturate": [0.25, 0.25]}


def test_corruption_errors_by_hand():
    ce = corruption.corruption_errors(OURS, THEIRS)
    assert ce == pytest.approx({"fog": 0.6 / 1.2, "snow": 0.3 / 0.4, "saturate": 2.0})
    assert corruption.mean_over(ce) == pytest.approx((0.5 + 0.75) / 2)
    assert corruption.mean_over(ce, corruption.EXTRA) == 2.0


def test_relative_errors_by_hand():
    relative = corruption.relative_errors(OURS, 0.05, THEIRS, 0.1)
    # Sums over the two severities, less twice the clean error.
    expected = {"fog": 0.5 / 1.0, "snow": 0.2 / 0.2, "saturate": 0.9 / 0.3}
    assert relative == pytest.approx(expected)


def test_of_an_error_that_is_not_there_nothing_is_said():
    ce = corruption.corruption_errors(OURS, {"fog": [0.0, 0.0], "snow": [0.1, 0.2]})
    assert list(ce) == ["fog", "snow"] and math.isnan(ce["fog"]) and ce["snow"] == 1
    assert math.isnan(corruption.mean_over(ce))
    assert math.isnan(corruption.mean_over({"saturate": 1.0}))


def test_the_published_errors():
    """The errors of AlexNet at severities 1 to 5, of which the constants are the means."""
    by_severity = {
        "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
        "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
        "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
        "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    }
    for name, errors in by_severity.items():
        assert corruption.ALEXNET[name] == pytest.approx(sum(errors) / 5, abs=1e-6)
    # Hendrycks and Dietterich 2019, table 1: AlexNet's own mCE is 100, ResNet-18's 84.7.
    ours = {name: [error] for name, error in corruption.ALEXNET.items()}
    ce = corruption.corruption_errors(ours, ours)
    assert len(ce) == 15 and corruption.mean_over(ce) == 1
