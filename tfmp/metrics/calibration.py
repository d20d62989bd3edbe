"""Whether a classifier is right as often as it says: calibration errors and temperature."""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from tfmp.errors import UserError
from tfmp.metrics.classification import Outcomes, checked

# exp(+-this) is where a temperature is looked for.
LARGEST_LOG_TEMPERATURE = np.log(1e3)


@dataclasses.dataclass(frozen=True)
class Bins:
    """Examples by confidence.

    Attributes:
        index: [examples] int64, the bin of each example, from 0 on.
        edges: [bins + 1] float64, confidences; a bin holds its upper edge and not its lower one.
        count: [bins] int64.
        confidence: [bins] float64, mean confidence; NaN in an empty bin.
        accuracy: [bins] float64; NaN in an empty bin.
    """

    index: np.ndarray
    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy from confidence, 0-1.

        References:
            Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
            Guo et al. 2017, "On calibration of modern neural networks", equation 3.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.count * gaps) / self.count.sum())


def equal_width_bins(found: Outcomes, bins: int = 15) -> Bins:
    """Bins of equal width from confidence 0 to 1.

    Args:
        found: Outcomes, all of them finite.
        bins: Their number.

    Raises:
        UserError: Some logits are not finite.
    """
    return _binned(found, np.linspace(0.0, 1.0, bins + 1))


def adaptive_bins(found: Outcomes, bins: int = 15) -> Bins:
    """Bins that hold equally many examples, but for ties, which stay together.

    Args:
        found: Outcomes, all of them finite.
        bins: Their number; fewer come of many equal confidences.

    Raises:
        UserError: Some logits are not finite.

    References:
        Nixon et al. 2019, "Measuring calibration in deep learning" (adaptive calibration error).
    """
    inner = np.quantile(found.confidence, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    return _binned(found, np.unique([0.0, *inner, 1.0]))


def _binned(found, edges):
    if not found.finite.all():
        raise UserError(
            "Expected finite logits to tell calibration from. Received: "
            f"{int((~found.finite).sum())} of {len(found.finite)} examples with others."
        )
    bins = len(edges) - 1
    # Rounding may leave a confidence a little above 1.
    index = np.clip(np.searchsorted(edges, found.confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, found.confidence, bins) / count
        accuracy = np.bincount(index, found.correct, bins) / count
    return Bins(index, edges, count, confidence, accuracy)


def temperature(logits, labels) -> float:
    """The temperature that minimizes the negative log-likelihood.

    Args:
        logits: [examples, classes], of validation examples and not of those to report on.
        labels: [examples] integers.

    Raises:
        UserError: Logits are not finite, or no temperature is best: where all examples are right,
            certainty is, and where logits tell nothing, indifference.

    References:
        Guo et al. 2017, section 4.2.
    """
    logits, labels = checked(logits, labels)
    rows = np.arange(len(labels))
    if wrong := int((~np.isfinite(logits).all(1)).sum()):
        raise UserError(
            f"Expected finite logits to fit a temperature to. Received: {wrong} of {len(labels)} "
            "validation examples with others."
        )

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        return np.mean(scipy.special.logsumexp(scaled, axis=1) - scaled[rows, labels])

    limit = LARGEST_LOG_TEMPERATURE
    best = scipy.optimize.minimize_scalar(
        loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}
    ).x
    right = int((logits.argmax(1) == labels).sum())
    if abs(best) > 0.99 * limit or right == len(labels):
        raise UserError(
            "Expected validation examples that a temperature can be fitted to. Received: "
            f"{len(labels)} of which {right} are right, for which none is best."
        )
    return float(np.exp(best))
