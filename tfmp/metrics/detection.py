"""How well a score tells examples like the training ones from others.

Everything is computed in float64 from logits. A higher score means "in distribution", which is the
positive class, as in the papers.

References:
    Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and out-of-distribution
        examples in neural networks" (largest softmax probability; AUROC, AUPR in both directions).
    Liang et al. 2018, "Enhancing the reliability of out-of-distribution image detection in neural
        networks", section 4.3 (false positive rate at 95 % true positive rate).
    Liu et al. 2020, "Energy-based out-of-distribution detection", equation 4, at temperature 1.
    Hendrycks et al. 2022, "Scaling out-of-distribution detection for real-world settings",
        section 3 (largest logit).
"""

import math

import numpy as np
import scipy.special
import sklearn.metrics

from tfmp.errors import UserError


def _max_softmax(logits):
    # Its logarithm, in the same order. Probabilities near 1 round to it, and so tie; the sum of
    # the others does not.
    others = np.exp(logits - logits.max(1, keepdims=True))
    others[np.arange(len(logits)), logits.argmax(1)] = 0.0
    return -np.log1p(others.sum(1))


SCORES = {
    "max_softmax": _max_softmax,
    "energy": lambda logits: scipy.special.logsumexp(logits, axis=1),
    "max_logit": lambda logits: logits.max(1),
}


def scores(logits):
    """Each score of `SCORES`: a dict of [examples] float64, higher for what looks familiar.

    Args:
        logits: [examples, classes] of any float dtype; not finite where the model failed, and
            then the scores are NaN.

    Raises:
        UserError: It is no such array.
    """
    logits = np.array(logits, np.float64)
    if logits.ndim != 2 or not logits.size:
        raise UserError(
            f"Expected logits [examples, classes], of one example at least. Received: "
            f"{list(logits.shape)}."
        )
    failed = ~np.isfinite(logits).all(1)
    logits[failed] = 0.0
    return {name: np.where(failed, np.nan, score(logits)) for name, score in SCORES.items()}


def placements(inside, outside):
    """How each example stands to the other set; the mean of either array is the AUROC.

    Args:
        inside: [examples] float64, the scores of examples in distribution.
        outside: [other examples] float64, of those that are not; all finite.

    Returns:
        [examples] and [other examples] float64: for each the share of the other set that its score
        is on the right side of, ties by half.

    References:
        DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated
        receiver operating characteristic curves: a nonparametric approach".
    """
    return _share_below(inside, outside), 1 - _share_below(outside, inside)


def _share_below(scores, others):
    ordered = np.sort(others)
    below = sum(np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return below / (2 * len(ordered))


def detection(inside, outside):
    """How well a score tells two sets of examples apart.

    Args:
        inside: [examples] float64, the scores of examples in distribution.
        outside: [other examples] float64, of those that are not.

    Returns:
        A dict of shares in 0-1. `auroc`: how likely an inside example has the higher score, ties
        by half. `aupr` and `aupr_out`: average precision in finding the inside and the outside
        ones; by chance they are `share_inside` and what is left of 1. `fpr_at_95_tpr`: share of
        outside examples above the threshold that keeps 95 % of the inside ones. All NaN but the
        share where a score is.

    Raises:
        UserError: One of the sets is empty.
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if not inside.size or not outside.size:
        raise UserError(
            "Expected examples in and out of distribution. Received: "
            f"{inside.size} and {outside.size}."
        )
    share = inside.size / (inside.size + outside.size)
    found = np.concatenate([inside, outside])
    if np.isnan(found).any():
        names = ("auroc", "aupr", "aupr_out", "fpr_at_95_tpr")
        return dict.fromkeys(names, math.nan) | {"share_inside": share}
    truth = np.repeat([1, 0], [inside.size, outside.size])
    kept = -(-inside.size * 95 // 100)
    threshold = np.sort(inside)[::-1][kept - 1]
    return {
        "auroc": float(sklearn.metrics.roc_auc_score(truth, found)),
        "aupr": float(sklearn.metrics.average_precision_score(truth, found)),
        "aupr_out": float(sklearn.metrics.average_precision_score(1 - truth, -found)),
        "fpr_at_95_tpr": float((outside >= threshold).mean()),
        "share_inside": share,
    }
