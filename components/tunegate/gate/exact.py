"""Paired scores of 0 and 1: an exact test of the difference, at every number of rows.

Tango's score test is asymptotic. At few rows, or where few rows differ at all, it lets a model at the margin through
more often than it says: at a margin of 0.05 and a model that only ever loses, 53 rows without a loss pass it, and come
up 6.6 % of the time. So the score only orders what can come out, and its probability is computed: the p-value is the
largest probability, over every share of rows that could differ, of a score at least as high as the one observed.

- I. S. F. Chan, Exact tests of equivalence and efficacy with a non-zero lower bound for comparative studies,
  Statistics in Medicine 17 (1998) 1403–1413: ordering by the score statistic, the nuisance parameter maximised over.
- H.-M. Hsueh, J.-P. Liu and J. J. Chen, Unconditional exact tests for equivalence or noninferiority for paired binary
  endpoints, Biometrics 57 (2001) 478–483: the same for pairs.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from tunegate.gate.bounds import crossing, tango_score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Counts = NDArray[np.int64]

#: How many values of the nuisance parameter are looked at: a grid that is finest where losses are rare.
_GRID = 96

#: Scores that differ by less are equal.
_ROUNDING = 1e-9

#: Where the sum over the number of losses may end: a normal tail beyond 8 deviations is below 1e-15.
_DEVIATIONS = 8

#: Steps of a bound's bisection: it is right to 2e-6, and each step sums whole distributions.
_STEPS = 20


def exact_p_value(gains: int, losses: int, rows: int, difference: float) -> float:
    """How probable a score this high, or a higher one, is at most when the true difference is ``difference`` or less.

    Args:
        gains: rows that are right in the candidate only.
        losses: rows that are right in the reference only.
        rows: all rows.
        difference: of the hypothesis that a small p-value refutes, strictly between -1 and 1.
    """
    return _p_value(float(tango_score(gains, losses, rows, difference)), rows, difference)


def exact_bounds(gains: int, losses: int, rows: int, *, alpha: float, threshold: float) -> tuple[float, float]:
    """The one-sided lower and upper bound, each at ``alpha``: the differences that the exact test does not refute.

    Args:
        threshold: the bisection starts here, so that each bound lies on the side of it that the test says.
    """
    return (
        _lower(gains, losses, rows, alpha, threshold),
        -_lower(losses, gains, rows, alpha, -threshold),
    )


def refuted(gains: Counts, losses: Counts, rows: int, difference: float, *, alpha: float) -> NDArray[np.bool_]:
    """Whether each of many outcomes refutes that the true difference is ``difference`` or less.

    It asks :func:`exact_p_value` of a few outcomes only, for it falls as the score rises.

    Args:
        gains, losses: shape (outcomes,).
    """
    import numpy as np

    scores = tango_score(gains, losses, rows, difference)
    found = np.unique(scores)
    low, high = 0, len(found)  # below low nothing refutes, from high on everything does
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _p_value(float(found[middle]), rows, difference) <= alpha else (middle + 1, high)
    return scores >= (found[low] if low < len(found) else math.inf) - _ROUNDING


@functools.lru_cache(maxsize=256)
def power(rows: int, difference: float, *, truth: float, discordance: float, alpha: float) -> float:
    """How probable it is that the test refutes ``difference`` or less.

    Args:
        rows: how many rows there will be.
        difference: of the hypothesis.
        truth: the true difference.
        discordance: share of the rows in which the two models truly differ; at least ``abs(truth)``.
        alpha: one-sided error rate.
    """
    least = _least_gains(_critical_score(rows, difference, alpha), rows, difference)
    return _probability(least, rows, loss=(discordance - truth) / 2, gain=(discordance + truth) / 2)


def mcnemar_p_value(gains: int, losses: int) -> float:
    """The exact one-sided McNemar test of no gain: how probable so many gains are when either change is as likely.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947) 153–157.
    """
    from scipy.stats import binomtest

    return float(binomtest(gains, gains + losses, alternative="greater").pvalue) if gains + losses else 1.0


def _lower(gains: int, losses: int, rows: int, alpha: float, threshold: float) -> float:
    """The largest difference below which all are refuted."""
    estimate = (gains - losses) / rows
    if estimate <= -1:
        return -1.0

    def refutes(difference: float) -> bool:
        return exact_p_value(gains, losses, rows, difference) <= alpha

    if not -1 < threshold < estimate:
        return crossing(refutes, -1.0, estimate, steps=_STEPS)
    if refutes(threshold):
        return crossing(refutes, threshold, estimate, steps=_STEPS)
    return crossing(refutes, -1.0, threshold, steps=_STEPS)


@functools.lru_cache(maxsize=256)
def _critical_score(rows: int, difference: float, alpha: float) -> float:
    """A score that is just high enough to refute."""
    low, high = 0.0, 2 * math.sqrt(rows) + 10
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(middle, rows, difference) > alpha else (low, middle)
    return high + _ROUNDING


def _p_value(score: float, rows: int, difference: float) -> float:
    """The largest probability of ``score`` or more at a true difference of ``difference``."""
    import numpy as np

    if score == -math.inf:
        return 1.0
    least = _least_gains(score, rows, difference)
    fewest, most = max(0.0, -difference), (1 - difference) / 2
    shares = fewest + (most - fewest) * np.linspace(0.0, 1.0, _GRID) ** 3
    return max(_probability(least, rows, loss=float(loss), gain=max(float(loss) + difference, 0.0)) for loss in shares)


def _least_gains(score: float, rows: int, difference: float) -> Counts:
    """For each number of losses, 0 to ``rows``, the fewest gains with at least this score; one too many where none.

    By bisection: with more gains the score is higher.
    """
    import numpy as np

    losses = np.arange(rows + 1)
    below, enough = np.full(rows + 1, -1), rows - losses + 1
    while np.any(between := enough - below > 1):
        middle = (below + enough) // 2
        reaches = (
            tango_score(middle.astype(np.float64), losses.astype(np.float64), rows, difference) >= score - _ROUNDING
        )
        enough = np.where(between & reaches, middle, enough)
        below = np.where(between & ~reaches, middle, below)
    return enough


def _probability(least: Counts, rows: int, *, loss: float, gain: float) -> float:
    """How probable at least ``least[losses]`` gains are, when each row is lost or gained with these probabilities."""
    import numpy as np
    from scipy import special

    deviation = _DEVIATIONS * math.sqrt(rows * loss * (1 - loss)) + _DEVIATIONS
    first, last = max(0, int(rows * loss - deviation)), min(rows, int(rows * loss + deviation) + 1)
    losses = np.arange(first, last + 1)
    rest = rows - losses
    log_ways = special.gammaln(rows + 1) - special.gammaln(losses + 1) - special.gammaln(rest + 1)
    chance = np.exp(log_ways + special.xlogy(losses, loss) + special.xlog1py(rest, -loss))
    wanted = least[first : last + 1]
    each = min(gain / (1 - loss), 1.0) if loss < 1 else 0.0
    inside = special.betainc(np.maximum(wanted, 1), np.maximum(rest - wanted + 1, 1), each)
    return float(chance @ np.where(wanted <= 0, 1.0, np.where(wanted > rest, 0.0, inside)))
