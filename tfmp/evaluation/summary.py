"""The metrics of predictions, with intervals, and what two sets of predictions differ in."""

import math

import numpy as np

from tfmp.errors import UserError
from tfmp.metrics import bootstrap, calibration, classification

CALIBRATION = ("nll", "brier", "ece", "adaptive_ece")
REPLICATES = 2000


def summarize(
    predictions,
    class_names,
    *,
    groups=None,
    bins=15,
    temperature=1.0,
    replicates=REPLICATES,
    seed=0,
):
    """The metrics of one set of predictions.

    Args:
        predictions: A `Predictions`.
        class_names: One name a class.
        groups: [examples], the group of each example, or None.
        bins: Number of bins of the calibration errors.
        temperature: What logits are divided by before they become probabilities.
        replicates: Resampled test sets behind the intervals; 0 for none of them.
        seed: Decides them.

    Returns:
        Two dicts, metric -> value and metric -> its 95 % interval: by bootstrap, but Wilson's for
        the accuracy of a class or group, where the bootstrap of one that is all right would have
        no width. Shares are in 0-1, `nll` in nats, `brier` in 0-2. A class without test examples
        has the accuracy NaN. Where logits are not finite, the metrics of probabilities are NaN,
        accuracies count those examples as wrong, and only the intervals of shares are there.

    Raises:
        UserError: The predictions are of another number of classes.
    """
    classes = predictions.logits.shape[-1]
    if classes != len(class_names):
        raise UserError(
            f"Expected logits of the data set's {len(class_names)} classes. Received: {classes}."
        )
    found = classification.outcomes(predictions.logits, predictions.labels, temperature)
    values = {
        "examples": len(found.labels),
        "non_finite": int((~found.finite).sum()),
        "accuracy": classification.top_k_accuracy(found, 1),
        **({"top5_accuracy": classification.top_k_accuracy(found, 5)} if classes > 5 else {}),
        **dict.fromkeys(CALIBRATION, math.nan),
    }
    intervals: dict = {}
    if found.finite.all():
        values |= {"nll": float(found.nll.mean()), "brier": float(found.brier.mean())}
        _errors(values, intervals, found, bins, replicates, seed)
        if replicates:
            _means(values, intervals, found, replicates, seed)
    by_class = {str(name): found.labels == i for i, name in enumerate(class_names)}
    _parts(values, intervals, found, "class", by_class)
    if groups is not None:
        names = np.unique(groups)
        _parts(values, intervals, found, "group", {str(n): groups == n for n in names})
    return values, intervals


def _errors(values, intervals, found, bins, replicates, seed):
    """Calibration errors, beside what chance makes of a calibrated model's."""
    binned = {
        "ece": calibration.equal_width_bins(found, bins),
        "adaptive_ece": calibration.adaptive_bins(found, bins),
    }
    for name, these in binned.items():
        values[name] = these.error
        if replicates:
            intervals[name], by_chance = bootstrap.interval_of_error(
                found, these, replicates=replicates, seed=seed
            )
            values[f"{name}_if_calibrated"] = by_chance


def _means(values, intervals, found, replicates, seed):
    columns = {
        "accuracy": found.correct,
        "top5_accuracy": found.rank < 5,
        "nll": found.nll,
        "brier": found.brier,
    }
    kept = {name: column for name, column in columns.items() if name in values}
    stacked = np.stack(list(kept.values()), 1)
    drawn = bootstrap.intervals_of_means(stacked, replicates=replicates, seed=seed)
    intervals |= dict(zip(kept, drawn.tolist(), strict=True))


def _parts(values, intervals, found, kind, members):
    """Accuracy of each class or group, and the worst of those that have examples."""
    accuracies, ranges = {}, {}
    for name, chosen in members.items():
        examples = int(chosen.sum())
        accuracies[name] = float(found.correct[chosen].mean()) if examples else math.nan
        if examples:
            ranges[name] = classification.interval_of_share(accuracies[name], examples)
    values[f"per_{kind}_accuracy"] = accuracies
    intervals[f"per_{kind}_accuracy"] = ranges
    worst = min(ranges, key=accuracies.__getitem__)
    values[f"worst_{kind}"] = {
        "name": worst,
        "accuracy": accuracies[worst],
        "examples": int(members[worst].sum()),
    }


def compare(predictions, reference):
    """What the same examples' predictions differ in.

    Args:
        predictions: A `Predictions`.
        reference: Another, of the same examples.

    Returns:
        A dict: `flips` and `flipped_share`, of examples whose predicted class differs;
        `became_wrong` and `became_right` among them; `largest_logit_difference` and
        `mean_logit_difference`, absolute; `relative_logit_difference`, the root of the mean
        square over that of the reference's logits, each less its example's mean. Logits are
        compared where they are finite in both, in `compared` examples; NaN if in none.

    Raises:
        UserError: They are of other examples or classes.
    """
    a, b = predictions, reference
    if a.logits.shape != b.logits.shape or not np.array_equal(a.labels, b.labels):
        raise UserError(
            "Expected predictions of the same examples, in the same order. Received: logits of "
            f"{list(a.logits.shape)} and {list(b.logits.shape)}, or other labels."
        )
    ours, theirs = (classification.outcomes(x.logits, x.labels) for x in (a, b))
    flipped = ours.predicted != theirs.predicted
    both = ours.finite & theirs.finite
    differences = a.logits[both].astype(np.float64) - b.logits[both]
    base = b.logits[both].astype(np.float64)
    some = bool(both.any())
    return {
        "compared": int(both.sum()),
        "flips": int(flipped.sum()),
        "flipped_share": float(flipped.mean()),
        "became_wrong": int((flipped & theirs.correct).sum()),
        "became_right": int((flipped & ours.correct).sum()),
        "largest_logit_difference": float(np.abs(differences).max()) if some else math.nan,
        "mean_logit_difference": float(np.abs(differences).mean()) if some else math.nan,
        "relative_logit_difference": _spread(differences) / _spread(base)
        if some and _spread(base)
        else math.nan,
    }


def _spread(logits):
    """Root of the mean square; the mean over an example's classes changes no probability."""
    return float(np.sqrt(((logits - logits.mean(1, keepdims=True)) ** 2).mean()))
