"""Confidence bounds on the mean of paired differences: pure functions.

Every bound is one-sided: it lies on the wrong side of the truth with probability at most ``alpha``, at the margin as
well as elsewhere. For binary scores that holds asymptotically (Tango's score bound keeps close to it from 30 rows on),
for real scores at any number of rows (a betting bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Bets stay below this share of what could be lost at once (Waudby-Smith & Ramdas recommend 1/2 or 3/4).
_BET_LIMIT = 0.75

_BISECTIONS = 45


def tango_bounds(gains: float, losses: float, rows: float, *, alpha: float) -> tuple[float, float]:
    """Score bounds for the difference of two paired proportions.

    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998) 891–908: the differences at which the score statistic, with the maximum likelihood
    estimate of the nuisance parameter under that difference, equals ∓z.

    Args:
        gains: rows that are right in the candidate only (n12).
        losses: rows that are right in the reference only (n21).
        rows: all rows.
        alpha: one-sided error rate.

    Returns:
        The one-sided lower and the one-sided upper bound, each at ``alpha``.
    """
    z = NormalDist().inv_cdf(1 - alpha)
    estimate = (gains - losses) / rows

    def score(difference: float) -> float:
        return _tango_score(gains, losses, rows, difference)

    lower = -1.0 if estimate <= -1 else _crossing(lambda d: score(d) > z, -1.0, estimate)
    upper = 1.0 if estimate >= 1 else _crossing(lambda d: score(d) >= -z, estimate, 1.0)
    return lower, upper


def _tango_score(gains: float, losses: float, rows: float, difference: float) -> float:
    """The score statistic for a true difference of ``difference``; decreases in it."""
    a = 2 * rows
    b = -gains - losses + (2 * rows - gains + losses) * difference
    c = -losses * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # ML estimate of the losses' probability
    variance = rows * (2 * share + difference * (1 - difference))
    deviation = gains - losses - rows * difference
    if variance <= 0:
        return math.copysign(math.inf, deviation) if deviation else 0.0
    return deviation / math.sqrt(variance)


def wilson_bounds(successes: float, rows: float, *, alpha: float) -> tuple[float, float]:
    """One-sided score bounds for a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209–212.
    """
    z = NormalDist().inv_cdf(1 - alpha)
    share = successes / rows
    centre = share + z * z / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def betting_bounds(differences: Array, *, lowest: float, highest: float, alpha: float) -> tuple[float, float]:
    """Bounds for a mean that hold at every number of rows, whatever the distribution within the range.

    Args:
        differences: shape (rows,), in an order that has nothing to do with the values.
        lowest, highest: no difference lies outside, observed or not; the caller has checked those that were observed.
        alpha: one-sided error rate.

    Returns:
        The one-sided lower and the one-sided upper bound, each at ``alpha``.
    """
    lower = lowest + _betting_lower(differences - lowest, -lowest, alpha) if lowest < 0 else lowest
    upper = highest - _betting_lower(highest - differences, highest, alpha) if highest > 0 else highest
    return lower, upper


def _betting_lower(values: Array, scale: float, alpha: float) -> float:
    """A lower bound for the mean of values that are at least 0.

    I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024) 1–27: a
    gambler who bets that the mean is above m multiplies his capital by 1 + bet·(value − m) at each row. If the mean is
    at most m that is fair or worse, so by Ville's inequality his capital ever reaches 1/alpha with probability alpha.
    The bound is the smallest m that he cannot so refute. Bets are chosen from the rows before (their equation 26).

    Values above 2·scale are cut: that can only lower their mean, and keeps one large gain from slowing the bets.
    """
    import numpy as np

    unit = np.clip(values / (2 * scale), 0.0, 1.0)
    count = np.arange(1, len(unit) + 1)
    means = (0.5 + np.cumsum(unit)) / (count + 1)
    variances = (0.25 + np.cumsum((unit - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.sqrt(2 * math.log(1 / alpha) / (len(unit) * before))

    def refuted(mean: float) -> bool:
        stakes = np.minimum(bets, _BET_LIMIT / mean)
        return bool(np.max(np.cumsum(np.log1p(stakes * (unit - mean)))) >= math.log(1 / alpha))

    return 2 * scale * _crossing(refuted, 1e-12, 1.0) if refuted(1e-12) else 0.0


def rows_needed(rows: int, shown_with: Callable[[int], bool], *, limit: int = 200_000) -> int | None:
    """About how many rows would decide, if further rows came out like those there are.

    Args:
        rows: how many there are.
        shown_with: whether that many rows would show it.
        limit: where to stop looking.

    Returns:
        The number, or None when even ``limit`` rows would not do.
    """
    low, high = rows, rows
    while not shown_with(high):
        low, high = high, 2 * high
        if high > limit:
            return None
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if shown_with(middle) else (middle, high)
    return high


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds near ``low`` stops holding, by bisection."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2
