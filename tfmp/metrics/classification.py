"""How right and how calibrated a classifier is, from its logits.

Everything is computed in float64, whatever the logits were computed in. A logit that is not
finite is no prediction: the example counts as wrong, and whatever averages probabilities over it
is NaN, so that it can't disappear in a mean.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.metrics import confusion_matrix

from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of each example; the metrics are means of these.

    Attributes:
        labels: [examples] int64, the true class.
        classes: Number of classes.
        finite: [examples] bool, whether all logits are finite.
        predicted: [examples] int64, the class of the largest logit; -1 where they are not finite.
        rank: [examples] int64, how many classes the true one is behind.
        nll: [examples] float64, -log of the true class's probability, in nats.
        brier: [examples] float64, the squared distance of the probabilities from the truth, 0-2.
        confidence: [examples] float64, the largest probability.
    """

    labels: np.ndarray
    classes: int
    finite: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """[examples] bool."""
        return self.predicted == self.labels


def outcomes(logits, labels, temperature=1.0) -> Outcomes:
    """What became of each example.

    Of equal logits the first class wins, as with `argmax`.

    Args:
        logits: [examples, classes] of any float dtype.
        labels: [examples] integers in [0, classes).
        temperature: What the logits are divided by.

    Raises:
        UserError: The shapes don't fit, there are no examples, or a label is out of range.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise UserError(
            "Expected logits [examples, classes] and as many labels, at least one. Received: "
            f"{list(logits.shape)} and {list(labels.shape)}."
        )
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"Expected integer labels from 0 to {classes - 1}, for {classes} logits. Received: "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    labels = labels.astype(np.int64)
    finite = np.isfinite(logits).all(1)
    whole = np.where(finite[:, None], logits, 0.0)
    rows = np.arange(len(labels))
    true = whole[rows, labels][:, None]
    before = (whole == true) & (np.arange(classes) < labels[:, None])
    rank = ((whole > true) | before).sum(1)
    log_probabilities = scipy.special.log_softmax(whole / temperature, axis=1)
    probabilities = np.exp(log_probabilities)
    truth = np.zeros_like(probabilities)
    truth[rows, labels] = 1

    def known(values):
        return np.where(finite, values, np.nan)

    return Outcomes(
        labels=labels,
        classes=classes,
        finite=finite,
        predicted=np.where(finite, whole.argmax(1), -1),
        rank=np.where(finite, rank, classes),
        nll=known(-log_probabilities[rows, labels]),
        brier=known(((probabilities - truth) ** 2).sum(1)),
        confidence=known(probabilities.max(1)),
    )


def top_k_accuracy(found: Outcomes, k: int) -> float:
    """Share of examples whose true class is among the k largest logits."""
    return float((found.rank < k).mean())


def confusion(found: Outcomes) -> np.ndarray:
    """Number of examples of each true class (row) predicted as each class.

    Returns:
        [classes, classes + 1] int64; the last column counts those without a prediction.
    """
    predicted = np.where(found.predicted < 0, found.classes, found.predicted)
    return confusion_matrix(found.labels, predicted, labels=range(found.classes + 1))[:-1]


def shares(correct, groups) -> dict:
    """Accuracy in each group.

    Args:
        correct: [examples] bool.
        groups: [examples], the group of each example.

    Returns:
        Group -> (accuracy, number of examples), sorted by group.
    """
    names, index = np.unique(groups, return_inverse=True)
    totals = np.bincount(index)
    right = np.bincount(index, weights=correct)
    return {
        name.item(): (float(r / n), int(n)) for name, r, n in zip(names, right, totals, strict=True)
    }


def interval_of_share(share: float, examples: int, confidence: float = 0.95) -> list[float]:
    """Wilson's score interval of a share, which has a width where all are right, too.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    test = scipy.stats.binomtest(round(share * examples), examples)
    found = test.proportion_ci(confidence_level=confidence, method="wilson")
    return [float(found.low), float(found.high)]


# --- calibration


@dataclasses.dataclass(frozen=True)
class Bins:
    """Examples by confidence.

    Attributes:
        index: [examples] int64, the bin of each example, from 0 on.
        edges: [bins + 1] float64, confidences; a bin holds its upper edge and not its lower one.
        count: [bins] int64.
        confidence: [bins] float64, mean confidence; NaN in an empty bin.
        accuracy: [bins] float64.
    """

    index: np.ndarray
    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy from confidence.

        References:
            Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
            Guo et al. 2017, "On calibration of modern neural networks", equation 3.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.sum(self.count * np.where(self.count, gaps, 0.0)) / self.count.sum())


def equal_width_bins(found: Outcomes, bins: int = 15) -> Bins:
    """Bins of equal width from confidence 0 to 1."""
    return _binned(found, np.linspace(0.0, 1.0, bins + 1))


def adaptive_bins(found: Outcomes, bins: int = 15) -> Bins:
    """Bins that hold equally many examples, but for ties; fewer bins than asked for with many.

    References:
        Nixon et al. 2019, "Measuring calibration in deep learning" (adaptive calibration error).
    """
    inner = np.quantile(found.confidence, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    return _binned(found, np.unique([0.0, *inner, 1.0]))


def _binned(found, edges):
    index = np.clip(np.searchsorted(edges, found.confidence, side="left") - 1, 0, len(edges) - 2)
    count = np.bincount(index, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, found.confidence, len(edges) - 1) / count
        accuracy = np.bincount(index, found.correct, len(edges) - 1) / count
    return Bins(index, edges, count, confidence, accuracy)


def temperature(logits, labels) -> float:
    """The temperature that minimizes the negative log-likelihood.

    Args:
        logits: [examples, classes], of validation examples and not of those to report on.
        labels: [examples] integers.

    Raises:
        UserError: Logits are not finite, or a temperature can't be told from these examples
            since all of them are right or all wrong by any distance.

    References:
        Guo et al. 2017, section 4.2.
    """
    found = outcomes(logits, labels)
    if not found.finite.all():
        raise UserError(
            f"Can't fit a temperature: {int((~found.finite).sum())} of {len(labels)} validation "
            "examples have logits that are not finite."
        )

    def loss(log_temperature):
        return outcomes(logits, labels, np.exp(log_temperature)).nll.mean()

    limit = np.log(1e3)
    best = scipy.optimize.minimize_scalar(
        loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}
    ).x
    if abs(best) > 0.99 * limit:
        raise UserError(
            f"Can't fit a temperature on {len(labels)} validation examples of which "
            f"{int(found.correct.sum())} are right: it has no best value."
        )
    return float(np.exp(best))


# --- uncertainty of the metrics


def bootstrap(found: Outcomes, bins: int, *, replicates: int, seed: int, confidence=0.95) -> dict:
    """Percentile intervals of the metrics, for test sets drawn like this one.

    Intervals of calibration errors are turned around the estimate ("basic" bootstrap): resampling
    adds to such an error as much as sampling did, so that its percentiles lie too high.

    Args:
        found: Outcomes, all of them finite.
        bins: Number of bins of the calibration errors.
        replicates: Resampled test sets.
        seed: Decides them.
        confidence: Of the interval, in (0, 1).

    Returns:
        Name -> [low, high], of "accuracy", "top5_accuracy", "nll", "brier", "ece" and
        "adaptive_ece".

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", chapters 5 and 13.
    """
    rng = np.random.default_rng(seed)
    examples = len(found.labels)
    columns = np.stack([found.correct, found.rank < 5, found.nll, found.brier], 1)
    gaps = found.correct - found.confidence
    binned = [equal_width_bins(found, bins).index, adaptive_bins(found, bins).index]
    onehot = [gaps[:, None] * (index[:, None] == np.arange(index.max() + 1)) for index in binned]
    drawn = []
    chunk = max(1, 2**24 // examples)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        weights = rng.multinomial(examples, np.full(examples, 1 / examples), rows) / examples
        errors = [np.abs(weights @ one).sum(1)[:, None] for one in onehot]
        drawn.append(np.concatenate([weights @ columns, *errors], 1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], 0)
    estimates = [np.abs(one.mean(0)).sum() for one in onehot]
    for i, estimate in enumerate(estimates, 4):
        low[i], high[i] = max(2 * estimate - high[i], 0.0), max(2 * estimate - low[i], 0.0)
    names = ("accuracy", "top5_accuracy", "nll", "brier", "ece", "adaptive_ece")
    return {n: [float(a), float(b)] for n, a, b in zip(names, low, high, strict=True)}
