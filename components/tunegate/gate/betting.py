"""Real scores: bounds and p-values for the mean of paired differences that hold at every number of rows.

I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024) 1–27: a gambler
who bets that the mean is above m multiplies his capital by 1 + bet·(value − m) at each row. If the mean is at most m
that is fair or worse, so by Ville's inequality his capital ever reaches 1/p with probability p at most. Bets are chosen
from the rows before (their equation 26).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunegate.gate.bounds import crossing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Bets stay below this share of what could be lost at once (Waudby-Smith & Ramdas recommend 1/2 or 3/4).
_BET_LIMIT = 0.75

#: The least mean that is ever asked about; a bet is a share of it.
_SMALLEST = 1e-12


def betting_bounds(differences: Array, *, lowest: float, highest: float, alpha: float) -> tuple[float, float]:
    """Bounds for a mean, whatever the distribution within the range.

    Args:
        differences: shape (rows,), in an order that has nothing to do with the values.
        lowest, highest: no difference lies outside, observed or not; the caller has checked those that were observed.
        alpha: one-sided error rate.

    Returns:
        The one-sided lower and the one-sided upper bound, each at ``alpha``.
    """
    lower = _lower(differences, lowest, alpha) if lowest < 0 else lowest
    upper = -_lower(-differences, -highest, alpha) if highest > 0 else highest
    return lower, upper


def betting_p_value(differences: Array, threshold: float, *, lowest: float, alpha: float) -> Array:
    """How far the rows refute that the mean is ``threshold`` or less: at most p with probability p when it is.

    Args:
        differences: shape (…, rows): the last axis is one sample.
        threshold: of the hypothesis.
        lowest: no difference is below it; negative.
        alpha: the level that the bets are made for. The p-value holds at every other one too.
    """
    import numpy as np

    mean = max((threshold - lowest) / (-2 * lowest), _SMALLEST)
    return np.exp(-np.maximum(_log_capital(_unit(differences, lowest), mean, alpha), 0.0))


def _lower(differences: Array, lowest: float, alpha: float) -> float:
    """The smallest mean that is not refuted."""
    unit = _unit(differences, lowest)

    def refutes(mean: float) -> bool:
        return bool(_log_capital(unit, mean, alpha) >= math.log(1 / alpha))

    return lowest - 2 * lowest * crossing(refutes, _SMALLEST, 1.0) if refutes(_SMALLEST) else lowest


def _unit(differences: Array, lowest: float) -> Array:
    """The values as a share of twice the worst.

    Those above are cut: that can only lower their mean, and keeps one large gain from slowing the bets.
    """
    import numpy as np

    return np.clip((differences - lowest) / (-2 * lowest), 0.0, 1.0)


def _log_capital(unit: Array, mean: float, alpha: float) -> Array:
    """The logarithm of the largest capital on the way; shape (…,)."""
    import numpy as np

    rows = unit.shape[-1]
    count = np.arange(1, rows + 1)
    means = (0.5 + np.cumsum(unit, axis=-1)) / (count + 1)
    variances = (0.25 + np.cumsum((unit - means) ** 2, axis=-1)) / (count + 1)
    before = np.concatenate([np.full((*unit.shape[:-1], 1), 0.25), variances[..., :-1]], axis=-1)
    bets = np.sqrt(2 * math.log(1 / alpha) / (rows * before))
    capital = np.cumsum(np.log1p(np.minimum(bets, _BET_LIMIT / mean) * (unit - mean)), axis=-1)
    return np.asarray(capital.max(axis=-1))
