"""Whether runs of another policy do as well as the reference's, with the chance of being wrong."""

import dataclasses
import itertools

import numpy as np

from tfmp.errors import UserError
from tfmp.evaluation import shifts as compare_shifts
from tfmp.metrics import calibration, classification, equivalence

RESAMPLED = 200
MOST_NAMES = 4
VERDICTS = ("equivalent", "different", "open")


@dataclasses.dataclass(frozen=True)
class Margins:
    """The largest differences that are taken for none, each in its metric's own unit.

    Attributes:
        accuracy: Of all test examples, 0-1.
        part: Accuracy of a class or a group, 0-1.
        ece: Expected calibration error, 0-1.
        corruption: Mean error of corrupted test examples, 0-1.
        auroc: Of telling other data sets' examples by the largest softmax probability, 0-1.
    """

    accuracy: float = 0.005
    part: float = 0.02
    ece: float = 0.01
    corruption: float = 0.01
    auroc: float = 0.01


def compare(
    reference,
    other,
    class_names,
    *,
    paired=False,
    groups=None,
    shifts=None,
    margins=None,
    alpha=0.05,
    bins=15,
):
    """Compares two kinds of runs on the same test examples.

    A test is "equivalent" where two one-sided tests at `alpha` put the difference inside of its
    margin; else "different" where a two-sided one finds it, at `alpha` for all tests together
    (Holm); else "open". The verdict is "equivalent" if all tests are, "different" if one is, and
    "not enough runs" otherwise.

    Args:
        reference: List of `Predictions`, one a run.
        other: List of `Predictions` of the other kind.
        class_names: One name a class.
        paired: Whether the first of one has the seed of the first of the other, and so on.
        groups: [examples], the group of each example, or None.
        shifts: Two lists of `tfmp.evaluation.shifts.Shifts`, one a run, or None.
        margins: A `Margins`; None: the default ones.
        alpha: Chance of calling equal kinds different, and different ones equivalent.
        bins: Number of bins of the calibration error.

    Returns:
        A dict that JSON can write: `verdict`, `reason`, `tests` (list of dicts: `metric`, `name`
        of the class or group or None, `means` of the kinds, `difference`, `interval` at 95 %,
        `margin`, `p_equivalent`, `p_different`, `p_corrected`, `smallest_visible`, `runs_needed`,
        `verdict`), `also` (list of dicts likewise, of metrics that are not tested), `flips` and
        `non_finite`.

    Raises:
        UserError: There are fewer than three runs of a kind, they are of other examples, or the
            reference's logits are not finite.
    """
    kinds = [[_outcomes(run, reference[0]) for run in kind] for kind in (reference, other)]
    bad = _non_finite(kinds, shifts)
    margins = margins or Margins()
    parts = list(_parts(kinds, class_names, groups))
    finite = not any(bad[1])
    tests = list(_tests(kinds, parts, margins, bins if finite else 0, paired))
    shifted = list(_shifted(reference, other, shifts, finite, paired)) if shifts else []
    of_shifts = {"corruption_error": margins.corruption, "auroc": margins.auroc}
    tests += [_row(x, name, y, of_shifts[x]) for x, name, y in shifted if x in of_shifts]
    _judge(tests, alpha)
    verdict, reason = _verdict(tests, sum(bad[1]))
    return {
        "verdict": verdict,
        "reason": reason,
        "alpha": alpha,
        "runs": [len(kind) for kind in kinds],
        "examples": len(kinds[0][0].labels),
        "tests": tests,
        "also": [
            *_also(kinds, parts, finite, paired),
            *(_row(x, name, y) for x, name, y in shifted if x not in of_shifts),
        ],
        "paired": paired,
        "flips": _flips(kinds, paired),
        "non_finite": bad,
    }


def _outcomes(predictions, first):
    if predictions.logits.shape != first.logits.shape or not np.array_equal(
        predictions.labels, first.labels
    ):
        raise UserError(
            "Expected runs that were evaluated on the same examples, in the same order. Received: "
            f"logits of {list(first.logits.shape)} and {list(predictions.logits.shape)}, or other "
            "labels."
        )
    return classification.outcomes(predictions.logits, predictions.labels)


def _non_finite(kinds, shifts):
    """How many examples each run has whose logits are not finite; the reference may have none."""
    bad = [[int((~run.finite).sum()) for run in kind] for kind in kinds]
    if shifts:
        more = [[run.non_finite for run in kind] for kind in shifts]
        bad = [[a + b for a, b in zip(*kind, strict=True)] for kind in zip(bad, more, strict=True)]
    if any(bad[0]):
        raise UserError(
            f"Expected reference runs with finite logits. Received: {max(bad[0]):,} examples with "
            "others in one of them."
        )
    return bad


# --- tests


def _tests(kinds, parts, margins, bins, paired):
    correct = [np.stack([run.correct for run in kind]) for kind in kinds]
    whole = equivalence.compare_means(*correct, paired=paired)
    yield _row("accuracy", None, whole, margins.accuracy)
    if bins:
        yield _row("ece", None, _calibration_error(kinds, bins, paired), margins.ece)
    for metric, members in parts:
        found = [
            equivalence.compare_means(*(x[:, mask] for x in correct), paired=paired)
            for mask in members.values()
        ]
        # A mean of so many zeros and ones is known to one of them.
        floors = [1 / (12 * mask.sum() ** 2) for mask in members.values()]
        for name, row in zip(members, equivalence.share_spread(found, floors), strict=True):
            yield _row(metric, name, row, margins.part)


def _parts(kinds, class_names, groups):
    """Masks of the examples of each class and each group, where there are some."""
    labels = kinds[0][0].labels
    classes = {str(name): labels == index for index, name in enumerate(class_names)}
    yield "class_accuracy", {name: mask for name, mask in classes.items() if mask.any()}
    if groups is not None:
        groups = np.asarray(groups)
        yield "group_accuracy", {str(name): groups == name for name in np.unique(groups)}


def _calibration_error(kinds, bins, paired):
    """ECE is no mean over examples: what the choice of these adds is found by resampling them."""
    binned = [[calibration.equal_width_bins(run, bins) for run in kind] for kind in kinds]
    errors = [[x.error for x in kind] for kind in binned]
    found = equivalence.compare_values(*errors, paired=paired)
    rng = np.random.default_rng(0)
    examples = len(kinds[0][0].labels)
    drawn = np.zeros(RESAMPLED)
    for index in range(RESAMPLED):
        counts = rng.multinomial(examples, np.full(examples, 1 / examples))
        means = [
            np.mean([_error(run, x, counts) for run, x in zip(kind, bins_, strict=True)])
            for kind, bins_ in zip(kinds, binned, strict=True)
        ]
        drawn[index] = means[1] - means[0]
    spread = dataclasses.replace(found.spread, between_examples=float(np.var(drawn)))
    return dataclasses.replace(found, spread=spread)


def _error(run, binned, counts):
    gaps = (run.correct - run.confidence) * counts
    return np.abs(np.bincount(binned.index, gaps)).sum() / len(gaps)


def _row(metric, name, found, margin=None):
    row = {
        "metric": metric,
        "name": name,
        "means": list(found.means),
        "difference": found.difference,
        "interval": found.interval(),
        "smallest_visible": found.smallest_visible(),
    }
    if margin is None:
        return row
    return row | {
        "margin": margin,
        "p_equivalent": found.p_equivalent(margin),
        "p_different": found.p_different,
        "runs_needed": found.runs_needed(margin),
    }


def _also(kinds, parts, finite, paired):
    """Metrics for the reader: what the tests say already, in other words."""
    for metric in ("nll", "brier") if finite else ():
        values = [np.stack([getattr(run, metric) for run in kind]) for kind in kinds]
        yield _row(metric, None, equivalence.compare_means(*values, paired=paired))
    for metric, members in parts:
        worst = [
            [min(run.correct[mask].mean() for mask in members.values()) for run in kind]
            for kind in kinds
        ]
        yield _row(f"worst_{metric}", None, equivalence.compare_values(*worst, paired=paired))


def _shifted(reference, other, shifts, finite, paired):
    """Triples of metric, name and comparison, of images that are no test examples as they are."""
    yield from compare_shifts.corruptions(*shifts, paired=paired)
    if finite:
        logits = [[run.logits for run in kind] for kind in (reference, other)]
        yield from compare_shifts.detection(logits, shifts, paired=paired)


# --- verdict


def _judge(tests, alpha):
    corrected = equivalence.holm([row["p_different"] for row in tests])
    for row, p in zip(tests, corrected, strict=True):
        row["p_corrected"] = p
        if row["p_equivalent"] < alpha:
            row["verdict"] = "equivalent"
        else:
            row["verdict"] = "different" if p < alpha else "open"


def _verdict(tests, non_finite):
    found = {verdict: [row for row in tests if row["verdict"] == verdict] for verdict in VERDICTS}
    if non_finite:
        return "different", f"logits are not finite in {non_finite:,} examples of the other runs"
    if found["different"]:
        return "different", _titles(found["different"])
    if not found["open"]:
        return "equivalent", f"all {len(tests)} differences are within their margins"
    needed = {row["runs_needed"] for row in found["open"]} - {None}
    reasons = []
    if needed:
        rows = [row for row in found["open"] if row["runs_needed"]]
        reasons.append(f"{max(needed)} of each would do, if they are equal, for {_titles(rows)}")
    if rows := [row for row in found["open"] if not row["runs_needed"]]:
        reasons.append(f"no number of runs would for {_titles(rows)}, on so few test examples")
    return "not enough runs", "; ".join(reasons)


def _titles(rows):
    names = [title(row) for row in rows[:MOST_NAMES]]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def title(row):
    """A test's name in words."""
    return row["metric"].replace("_", " ") + (f" of {row['name']}" if row["name"] else "")


# --- flips


def _flips(kinds, paired):
    """Shares of examples whose predicted class differs, in the mean over pairs of runs."""
    pairs = list((zip if paired else itertools.product)(*kinds))
    within = [list(itertools.combinations(kind, 2)) for kind in kinds]
    found = {
        "between_kinds": _share(pairs),
        "among_reference": _share(within[0]),
        "among_other": _share(within[1]),
    }
    return found | {
        "became_wrong": float(np.mean([(a.correct & ~b.correct).mean() for a, b in pairs]))
    }


def _share(pairs):
    """Of the pairs; a kind has three runs at least, and so three."""
    return float(np.mean([(a.predicted != b.predicted).mean() for a, b in pairs]))
