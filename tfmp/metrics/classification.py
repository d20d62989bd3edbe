"""How right a classifier is, from its logits.

Everything is computed in float64, whatever the logits were computed in. Logits that are not finite
are no prediction: the example counts as wrong, and whatever averages probabilities over it is NaN,
so that it can't disappear in a mean.

The losses are those of scikit-learn's `log_loss` and `brier_score_loss`, but one for each example,
which resampling needs, and not cut off where a probability rounds to 0. Of equal logits the first
class wins, as with `argmax`; scikit-learn's `top_k_accuracy_score` prefers the last.
"""

import dataclasses

import numpy as np
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
        rank: [examples] int64, how many classes come before the true one; all of them where logits
            are not finite.
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


def outcomes(logits, labels, temperature: float = 1.0) -> Outcomes:
    """What became of each example.

    Args:
        logits: [examples, classes] of any float dtype.
        labels: [examples] integers in [0, classes).
        temperature: What the logits are divided by.

    Raises:
        UserError: The shapes don't fit, there are no examples, or a label is out of range.
    """
    logits, labels = checked(logits, labels)
    rows, classes = np.arange(len(labels)), logits.shape[1]
    finite = np.isfinite(logits).all(1)
    logits[~finite] = 0.0
    true = logits[rows, labels][:, None]
    earlier = np.arange(classes) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(1)
    predicted = logits.argmax(1)
    log_probabilities = scipy.special.log_softmax(logits / temperature, axis=1)
    probabilities = np.exp(log_probabilities)
    confidence = probabilities.max(1)
    probabilities[rows, labels] -= 1
    brier = np.einsum("ec,ec->e", probabilities, probabilities)

    def known(values):
        return np.where(finite, values, np.nan)

    return Outcomes(
        labels=labels,
        classes=classes,
        finite=finite,
        predicted=np.where(finite, predicted, -1),
        rank=np.where(finite, rank, classes),
        nll=known(-log_probabilities[rows, labels]),
        brier=known(brier),
        confidence=known(confidence),
    )


def checked(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """Copies in float64 and int64, of a shape and range that fit each other.

    Raises:
        UserError: They don't.
    """
    logits, labels = np.array(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise UserError(
            "Expected logits [examples, classes] and a label for each example, at least one. "
            f"Received: {list(logits.shape)} and {list(labels.shape)}."
        )
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"Expected integer labels from 0 to {classes - 1}, for {classes} logits. Received: "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    return logits, labels.astype(np.int64)


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


def interval_of_share(share: float, examples: int, confidence: float = 0.95) -> list[float]:
    """Wilson's score interval of a share, which has a width where all are right, too.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    test = scipy.stats.binomtest(round(share * examples), examples)
    found = test.proportion_ci(confidence_level=confidence, method="wilson")
    return [float(found.low), float(found.high)]
