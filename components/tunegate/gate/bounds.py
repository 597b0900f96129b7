"""Score bounds for shares and for the difference of two paired shares: pure functions, on numbers and on arrays alike.

They hold asymptotically. What decides is in :mod:`tunegate.gate.exact` and :mod:`tunegate.gate.betting`, which hold at
every number of rows; these are where their search starts, and what says how many rows would do.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Numbers = float | NDArray[np.float64] | NDArray[np.int64]

_BISECTIONS = 45

#: A variance or deviation below this share of the rows is rounding, and truly 0.
_ROUNDING = 1e-12


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
        return float(tango_score(gains, losses, rows, difference))

    lower = -1.0 if estimate <= -1 else crossing(lambda d: score(d) > z, -1.0, estimate)
    upper = 1.0 if estimate >= 1 else crossing(lambda d: score(d) >= -z, estimate, 1.0)
    return lower, upper


def tango_score(gains: Numbers, losses: Numbers, rows: float, difference: float) -> Array:
    """Tango's score statistic for a true difference of ``difference``, in which it decreases.

    It is infinite where that difference is impossible.
    """
    import numpy as np

    won, lost = np.asarray(gains, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    b = -won - lost + (2 * rows - won + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (np.sqrt(np.maximum(b * b - 8 * rows * c, 0.0)) - b) / (4 * rows)  # ML estimate of a loss's probability
    variance = rows * (2 * share + difference * (1 - difference))
    deviation = won - lost - rows * difference
    certain = variance <= _ROUNDING * rows
    score = deviation / np.sqrt(np.where(certain, 1.0, variance))
    impossible = np.where(np.abs(deviation) <= _ROUNDING * rows, 0.0, np.copysign(np.inf, deviation))
    return np.where(certain, impossible, score)


def wilson_bounds(successes: float, rows: float, *, alpha: float) -> tuple[float, float]:
    """One-sided score bounds for a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209–212.
    """
    z = NormalDist().inv_cdf(1 - alpha)
    share = successes / rows
    centre = share + z * z / (2 * rows)
    spread = z * float((share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5)
    scale = 1 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


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


def crossing(holds: Callable[[float], bool], low: float, high: float, *, steps: int = _BISECTIONS) -> float:
    """Where a condition that holds near ``low`` stops holding, by bisection."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2
