"""Runs on corrupted images and on other data: what is compared, and how sure that is."""

import dataclasses
import math

import numpy as np
import pytest
import sklearn.metrics

from tfmp import errors
from tfmp.evaluation import Predictions, parity, shifts
from tfmp.evaluation.shifts import Shifts

NAMES = ["a", "b"]


def under(rng, runs=4, examples=500, harm=0.0):
    """Two kinds under two corruptions and an extra one; the other's error of snow has `harm` more.

    Some images are harder than others, for all runs.
    """
    hard = rng.random(examples)

    def one(harm):
        luck = 0.01 * rng.normal()
        rates = {"snow": 0.3 + harm, "fog": 0.1, "saturate": 0.05}
        drawn = {name: (hard + 0.2 * rng.random((2, examples))) / 1.2 for name in rates}
        return Shifts(wrong={name: drawn[name] < rate + luck for name, rate in rates.items()})

    return [[one(0.0) for _ in range(runs)], [one(harm) for _ in range(runs)]]


def by_metric(found):
    return {metric: comparison for metric, _, comparison in found}


def test_errors_by_hand():
    one = {"snow": np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)}
    one["fog"] = np.array([[0, 0, 0, 1], [0, 0, 0, 1]], bool)
    one["saturate"] = np.array([[0, 0, 0, 0], [1, 1, 1, 1]], bool)
    other = {**one, "snow": np.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool)}
    found = by_metric(shifts.corruptions([Shifts(one)] * 3, [Shifts(other)] * 3))
    assert found["corruption_error"].means == ((3 / 8 + 1 / 4) / 2, (3 / 4 + 1 / 4) / 2)
    assert found["extra_corruption_error"].means == (0.5, 0.5)
    # Snow costs twice as much, and fog the same.
    assert found["mce"].means == pytest.approx((1.0, 1.5))
    never = {name: values & False for name, values in one.items()}
    found = by_metric(shifts.corruptions([Shifts(never)] * 3, [Shifts(one)] * 3))
    assert "mce" not in found and found["corruption_error"].means == (0, (3 / 8 + 1 / 4) / 2)


def test_a_harm_under_corruption_is_seen_and_equal_kinds_are_not():
    rng = np.random.default_rng(0)
    harmed = by_metric(shifts.corruptions(*under(rng, harm=0.1)))
    assert harmed["corruption_error"].p_different < 0.001
    assert harmed["corruption_error"].difference == pytest.approx(0.05, abs=0.02)
    p = [
        by_metric(shifts.corruptions(*under(rng)))["corruption_error"].p_different
        for _ in range(200)
    ]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def logits_of(scores):
    """Two classes: the larger the score, the surer the first."""
    return np.stack([scores, np.zeros_like(scores)], 1)


def detected(rng, *, inside=300, outside=200, whim=0.0, gain=(1.5, 2.5)):
    """Two kinds of three runs, which tell the sets apart by their gains; all on one draw."""
    easy, other = rng.random(inside) + 0.3, rng.random(outside)
    extra = rng.random(inside), rng.random(outside)
    logits, seen = [], []
    for kind in (0, 1):
        runs = [
            [
                logits_of(gain[kind] * x + kind * more + whim * rng.random(len(x)))
                for x, more in zip((easy, other), extra, strict=True)
            ]
            for _ in range(3)
        ]
        logits.append([run[0] for run in runs])
        seen.append([Shifts(outside={"noise": run[1]}) for run in runs])
    return logits, seen


def test_auroc_is_scikit_learns():
    logits, seen = detected(np.random.default_rng(1), whim=0.5)
    found = list(shifts.detection(logits, seen))
    assert [(metric, name) for metric, name, _ in found] == [
        ("auroc", "noise"),
        ("auroc_energy", "noise"),
        ("auroc_max_logit", "noise"),
    ]
    for kind in (0, 1):
        truth = np.repeat([1, 0], [300, 200])
        values = [
            sklearn.metrics.roc_auc_score(
                truth, np.concatenate([a[:, 0], b.outside["noise"][:, 0]])
            )
            for a, b in zip(logits[kind], seen[kind], strict=True)
        ]
        for _, _, comparison in found:
            assert comparison.means[kind] == pytest.approx(np.mean(values))
        if not kind:
            spread = np.var(values, ddof=1)
    assert found[0][2].spread.between_runs > spread / 10


def test_the_choice_of_the_images_is_in_the_error_of_an_auroc():
    """Runs of a kind that agree: over many draws of images their difference varies as foretold."""
    rng = np.random.default_rng(2)
    found = [next(shifts.detection(*detected(rng)))[2] for _ in range(400)]
    truth = np.var([comparison.difference for comparison in found])
    foretold = np.mean([comparison.error**2 for comparison in found])
    assert foretold == pytest.approx(truth, rel=0.2)


def predictions(rng, runs=3):
    """Runs that are nearly always right, on 400 examples."""
    labels = np.arange(400) % 2
    found = []
    for _ in range(runs):
        logits = rng.normal(size=(400, 2)) * 0.2
        logits[np.arange(400), labels] += 1
        found.append(Predictions(logits.astype("float32"), labels))
    return found


def shifted(rng, harm=0.0):
    outside = logits_of(rng.normal(size=250) * 0.2)

    def seen(run):
        noise = outside + 0.01 * rng.normal(size=outside.shape)
        return dataclasses.replace(run, outside={"noise": noise})

    return [[seen(run) for run in kind] for kind in under(rng, runs=3, harm=harm)]


def test_they_are_tests_of_the_same_family():
    rng = np.random.default_rng(3)
    kinds = predictions(rng), predictions(rng)
    plain = parity.compare(*kinds, NAMES)
    found = parity.compare(*kinds, NAMES, shifts=shifted(rng, harm=0.2))
    metrics = [(row["metric"], row["name"]) for row in found["tests"]]
    assert metrics == [
        *((row["metric"], row["name"]) for row in plain["tests"]),
        ("corruption_error", None),
        ("auroc", "noise"),
    ]
    harmed, auroc = found["tests"][-2:]
    assert harmed["margin"] == auroc["margin"] == 0.01
    assert harmed["verdict"] == "different" and "corruption error" in found["reason"]
    assert harmed["p_corrected"] >= harmed["p_different"] * len(found["tests"]) * 0.99
    also = [(row["metric"], row["name"]) for row in found["also"][-4:]]
    assert also == [
        ("extra_corruption_error", None),
        ("mce", None),
        ("auroc_energy", "noise"),
        ("auroc_max_logit", "noise"),
    ]


def test_what_is_not_finite():
    rng = np.random.default_rng(4)
    kinds = predictions(rng), predictions(rng)
    fine, bad = shifted(rng)
    bad = [dataclasses.replace(run, non_finite=2) for run in bad]
    bad[0].outside["noise"][:2] = np.nan
    found = parity.compare(*kinds, NAMES, shifts=[fine, bad])
    assert found["verdict"] == "different" and "not finite in 6 examples" in found["reason"]
    assert "auroc" not in {row["metric"] for row in found["tests"]}
    with pytest.raises(errors.UserError, match="reference runs with finite logits"):
        parity.compare(*kinds, NAMES, shifts=[bad, fine])


def test_other_images_are_refused():
    rng = np.random.default_rng(5)
    with pytest.raises(errors.UserError, match="same corruptions"):
        list(shifts.corruptions(under(rng)[0], under(rng, examples=400)[1]))
    logits, seen = detected(rng)
    seen[1][0] = Shifts(outside={"other": seen[1][0].outside["noise"]})
    with pytest.raises(errors.UserError, match="same data sets"):
        list(shifts.detection(logits, seen))
