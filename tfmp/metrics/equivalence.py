"""Whether two kinds of training runs differ by more than chance, or by less than a margin.

Runs are the sample: seeds differ, and with them all that a run gets right. All runs are tested on
the same examples, which are a sample too. So a mean over runs and examples varies by both, and
the variance of a difference of two such means is the sum

    s^2 (1/n + 1/m) + v / examples

of the variance s^2 between runs (n of one kind and m of the other), and of the variance v between
examples of how much the kinds differ on an example, whatever the runs. Two runs of one seed share
their first weights and the order of the data, and so a part of their luck: where runs come in such
pairs, s^2 is half the variance of the pairs' differences.
"""

import dataclasses
import math

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from tfmp.errors import UserError

FEWEST_RUNS = 3
MOST_RUNS = 1000
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Spread:
    """How much a metric varies by chance, in its own unit.

    Attributes:
        between_runs: Variance between the runs of one kind; of pairs, half that of their
            differences.
        freedom: Degrees of freedom of `between_runs`; infinite where it is known.
        between_examples: Variance of the difference of the kinds' means that comes from the choice
            of the test examples.
    """

    between_runs: float
    freedom: float
    between_examples: float = 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A metric of two kinds of runs.

    Attributes:
        means: Of the reference and of the other kind.
        runs: Their numbers.
        spread: A `Spread`.
    """

    means: tuple[float, float]
    runs: tuple[int, int]
    spread: Spread

    @property
    def difference(self) -> float:
        """The other kind's mean less the reference's."""
        return self.means[1] - self.means[0]

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return self._error(*self.runs)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error.

        References:
            Satterthwaite 1946, "An approximate distribution of estimates of variance components".
        """
        return self._freedom(*self.runs, self.spread.freedom)

    def interval(self, confidence: float = 0.95) -> list[float]:
        """Of the difference: [low, high]."""
        half = _t(1 - (1 - confidence) / 2, self.freedom) * self.error
        return [self.difference - half, self.difference + half]

    @property
    def p_different(self) -> float:
        """Chance of a difference as large or larger, either way, if there is none."""
        if not self.error:
            return float(self.difference == 0)
        return float(2 * scipy.stats.t.sf(abs(self.difference) / self.error, self.freedom))

    def p_equivalent(self, margin: float) -> float:
        """Chance of a difference as far inside of the margin, if the true one is not inside.

        Args:
            margin: Largest difference, either way, that is taken for none.

        References:
            Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power
            approach for assessing the equivalence of average bioavailability".
        """
        inside = margin - abs(self.difference)
        if not self.error:
            return float(inside <= 0)
        return float(scipy.stats.t.sf(inside / self.error, self.freedom))

    def smallest_visible(self, alpha: float = 0.05) -> float:
        """The true difference that such runs would find at `alpha` in four of five comparisons."""
        return (_t(1 - alpha / 2, self.freedom) + _t(POWER, self.freedom)) * self.error

    def runs_needed(self, margin: float, alpha: float = 0.05) -> int | None:
        """Runs of each kind by which two equal kinds would be found equivalent, in four of five.

        Args:
            margin: As for `p_equivalent`.
            alpha: Of the two one-sided tests.

        Returns:
            A number from `FEWEST_RUNS` on; None where even `MOST_RUNS` would not do: the test
            examples are too few, or the margin is too small.
        """

        def enough(runs):
            # As good as the spread would be known by so many runs.
            freedom = self._freedom(runs, runs, self.spread.freedom * runs / min(self.runs))
            reach = _t(1 - alpha, freedom) + _t(1 - (1 - POWER) / 2, freedom)
            return reach * self._error(runs, runs) < margin

        if not enough(MOST_RUNS):
            return None
        low, high = FEWEST_RUNS, MOST_RUNS
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low

    def _error(self, one, other):
        runs = self.spread.between_runs * (1 / one + 1 / other)
        return math.sqrt(runs + self.spread.between_examples)

    def _freedom(self, one, other, freedom):
        runs = self.spread.between_runs * (1 / one + 1 / other)
        whole = runs + self.spread.between_examples
        return freedom * (whole / runs) ** 2 if runs else math.inf


def _t(share, freedom):
    return float(scipy.stats.t.ppf(share, freedom))


def compare_values(reference, other, *, paired=False) -> Comparison:
    """Compares a metric of which each run has one value, on the same test examples.

    Args:
        reference: [runs] of one kind.
        other: [runs] of the other kind.
        paired: Whether the first of one belongs to the first of the other, and so on.

    Returns:
        A `Comparison` that takes the test examples as given.

    Raises:
        UserError: There are fewer than three runs of a kind, a value is not finite, or pairs are
            incomplete.
    """
    one, other = (np.asarray(kind, np.float64) for kind in (reference, other))
    runs = len(one), len(other)
    if min(runs) < FEWEST_RUNS:
        raise UserError(
            f"Expected {FEWEST_RUNS} runs or more of each kind, to tell a difference from chance. "
            f"Received: {runs[0]} and {runs[1]}."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise UserError("Expected finite values. Received: some that are not.")
    if paired and runs[0] != runs[1]:
        raise UserError(f"Expected runs in pairs. Received: {runs[0]} and {runs[1]}.")
    if paired:
        spread = Spread(float(np.var(other - one, ddof=1)) / 2, runs[0] - 1)
    else:
        squares = sum(((kind - kind.mean()) ** 2).sum() for kind in (one, other))
        spread = Spread(float(squares) / (sum(runs) - 2), sum(runs) - 2)
    return Comparison((float(one.mean()), float(other.mean())), runs, spread)


def compare_means(reference, other, *, paired=False) -> Comparison:
    """Compares a metric that is a mean over test examples, which are taken for a sample, too.

    Args:
        reference: [runs, examples], each example's value in each run of one kind.
        other: [runs, examples], likewise, of the same examples.
        paired: As for `compare_values`.

    Raises:
        UserError: As for `compare_values`, or the numbers of examples differ.

    References:
        Owen and Eckles 2012, "Bootstrapping data arrays of arbitrary order": resampling runs and
        examples has this variance on average, but for the part that both count.
    """
    one, other = (np.asarray(kind, np.float64) for kind in (reference, other))
    if one.shape[1:] != other.shape[1:] or not one.shape[1]:
        raise UserError(
            "Expected all runs to be tested on the same examples. Received: "
            f"{list(one.shape)} and {list(other.shape)} runs and examples."
        )
    found = compare_values(one.mean(1), other.mean(1), paired=paired)
    examples = one.shape[1]
    between = np.var(other.mean(0) - one.mean(0), ddof=1) if examples > 1 else 0.0
    tables = [other - one] if paired else [one, other]
    by_chance = sum(_residual_variance(table) / len(table) for table in tables)
    # The runs' own whims on single examples are in `between_runs` already.
    own = max(float(between - by_chance), 0.0) / examples
    return dataclasses.replace(
        found, spread=dataclasses.replace(found.spread, between_examples=own)
    )


def _residual_variance(table):
    """Variance of what is neither the run's mean nor the example's: of [runs, examples]."""
    residuals = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return (residuals**2).sum() / freedom if freedom else 0.0


def share_spread(comparisons, floors) -> list[Comparison]:
    """Comparisons of many parts, such as classes, that learn from one another how runs vary.

    A variance by a few runs is itself a matter of chance: the class in which the runs happen to
    agree would seem to differ. So each variance is drawn towards what all have in common, the more
    the less they differ among themselves.

    Args:
        comparisons: `Comparison`s of the same runs.
        floors: The smallest variance between runs of each, as of values that are rounded to one
            example.

    References:
        Smyth 2004, "Linear models and empirical Bayes methods for assessing differential
        expression in microarray experiments", section 6.
    """
    freedom = comparisons[0].spread.freedom
    variances = np.maximum([x.spread.between_runs for x in comparisons], floors)
    common, common_freedom = _common_variance(variances, freedom)
    # No more is known than all of them together say.
    whole = min(freedom + common_freedom, freedom * len(comparisons))
    if math.isinf(common_freedom):
        shared = np.full(len(variances), common)
    else:
        shared = (common_freedom * common + freedom * variances) / (common_freedom + freedom)
    return [
        dataclasses.replace(
            x, spread=dataclasses.replace(x.spread, between_runs=float(v), freedom=whole)
        )
        for x, v in zip(comparisons, shared, strict=True)
    ]


def _common_variance(variances, freedom):
    """The variance that all share, and the degrees of freedom that this knowledge is worth."""
    logs = np.log(variances) - scipy.special.digamma(freedom / 2) + math.log(freedom / 2)
    if len(variances) < 2:
        return float(variances[0]), 0.0
    excess = np.var(logs, ddof=1) - scipy.special.polygamma(1, freedom / 2)
    # Below it the variances differ by no more than chance.
    if excess <= scipy.special.polygamma(1, 5e5):
        return float(np.mean(variances)), math.inf
    half = scipy.optimize.brentq(lambda x: scipy.special.polygamma(1, x) - excess, 1e-6, 1e6)
    common = math.exp(logs.mean() + scipy.special.digamma(half) - math.log(half))
    return common, 2 * float(half)


def holm(p_values) -> list[float]:
    """P values corrected for their number: below alpha for a true null with chance alpha at most.

    References:
        Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected.tolist()
