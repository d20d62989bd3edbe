"""Whether two results on the same examples differ by more than chance."""

import numpy as np
import scipy.stats

from tfmp.errors import UserError

# A smaller p-value is not put down to chance: one comparison in a thousand is, wrongly.
ALPHA = 0.001


def fewer_right(first, second) -> float:
    """How likely chance alone makes the first be right as seldom as this.

    The exact one-sided test of McNemar: of the examples where just one of the two is right, the
    first has each with probability 1/2 if they are equally good.

    Args:
        first: [examples] bool, which ones are right.
        second: Likewise, of the same examples.

    Returns:
        The p-value; 1 where no example differs.

    Raises:
        UserError: The shapes differ.

    References:
        McNemar 1947, "Note on the sampling error of the difference between correlated
        proportions or percentages".
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise UserError(
            "Expected two results on the same examples. Received: shapes "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    if won + lost == 0:
        return 1.0
    return float(scipy.stats.binomtest(won, won + lost, alternative="less").pvalue)


def differ(first, second) -> float:
    """The two-sided p-value of McNemar's exact test; arguments as for `fewer_right`."""
    return min(1.0, 2 * min(fewer_right(first, second), fewer_right(second, first)))
