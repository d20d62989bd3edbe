"""The metrics of predictions, with intervals, and what two sets of predictions differ in."""

import math

import numpy as np

from tfmp.errors import UserError
from tfmp.metrics import classification

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
        replicates: Resampled test sets behind the intervals; 0 for none.
        seed: Decides them.

    Returns:
        Two dicts, metric -> value and metric -> its 95 % interval. Shares are in 0-1, `nll` in
        nats, `brier` in 0-2. Where logits are not finite, the metrics of probabilities are NaN
        and have no interval, and accuracies count those examples as wrong.

    Raises:
        UserError: The predictions are of another number of classes.
    """
    classes = predictions.logits.shape[-1]
    if classes != len(class_names):
        raise UserError(
            f"Expected a model of the data set's {len(class_names)} classes. Received: one of "
            f"{classes}."
        )
    found = classification.outcomes(predictions.logits, predictions.labels, temperature)
    finite = bool(found.finite.all())
    per_class = _named(classification.shares(found.correct, found.labels), class_names)
    values = {
        "examples": len(found.labels),
        "non_finite": int((~found.finite).sum()),
        "accuracy": classification.top_k_accuracy(found, 1),
        "top5_accuracy": classification.top_k_accuracy(found, 5) if classes > 5 else None,
        "nll": float(found.nll.mean()),
        "brier": float(found.brier.mean()),
        "ece": classification.equal_width_bins(found, bins).error if finite else math.nan,
        "adaptive_ece": classification.adaptive_bins(found, bins).error if finite else math.nan,
        "per_class_accuracy": {name: share for name, (share, _) in per_class.items()},
        "worst_class": _worst(per_class),
    }
    intervals = {"per_class_accuracy": _intervals(per_class)}
    if groups is not None:
        per_group = classification.shares(found.correct, groups)
        values["per_group_accuracy"] = {name: share for name, (share, _) in per_group.items()}
        values["worst_group"] = _worst(per_group)
        intervals["per_group_accuracy"] = _intervals(per_group)
    if replicates and finite:
        drawn = classification.bootstrap(found, bins, replicates=replicates, seed=seed)
        intervals |= {name: drawn[name] for name in drawn if values[name] is not None}
    return {k: v for k, v in values.items() if v is not None}, intervals


def compare(predictions, reference):
    """What the same examples' predictions differ in.

    Args:
        predictions: A `Predictions`.
        reference: Another, of the same examples.

    Returns:
        A dict: `flips` and `flipped_share`, of examples whose predicted class differs;
        `became_wrong` and `became_right` among them; `largest_logit_difference` and
        `mean_logit_difference`, absolute; `relative_logit_difference`, the root of the mean
        square over that of the reference's logits, each less its example's mean. Differences
        are over the examples whose logits are finite in both, whose number is `compared`.
    """
    ours, theirs = (classification.outcomes(x.logits, x.labels) for x in (predictions, reference))
    flipped = ours.predicted != theirs.predicted
    both = ours.finite & theirs.finite
    a, b = (np.asarray(x.logits, np.float64)[both] for x in (predictions, reference))
    differences = np.abs(a - b)
    centered, base = ((x - x.mean(1, keepdims=True)) for x in (a - b, b))
    none = not both.any()
    return {
        "compared": int(both.sum()),
        "flips": int(flipped.sum()),
        "flipped_share": float(flipped.mean()),
        "became_wrong": int((flipped & theirs.correct).sum()),
        "became_right": int((flipped & ours.correct).sum()),
        "largest_logit_difference": math.nan if none else float(differences.max()),
        "mean_logit_difference": math.nan if none else float(differences.mean()),
        "relative_logit_difference": math.nan
        if none
        else float(np.sqrt((centered**2).mean() / max((base**2).mean(), 1e-300))),
    }


def _named(shares, names):
    return {names[index]: share for index, share in shares.items()}


def _worst(shares):
    name = min(shares, key=lambda key: shares[key][0])
    share, examples = shares[name]
    return {"name": name, "accuracy": share, "examples": examples}


def _intervals(shares):
    return {
        name: classification.interval_of_share(share, examples)
        for name, (share, examples) in shares.items()
    }
