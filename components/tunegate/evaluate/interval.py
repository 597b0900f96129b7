"""Where the mean of all such rows lies, for a page. What is decided is decided by the gate, on paired rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """An interval of the mean: Wilson's for scores of 0 and 1, Student's otherwise; None for fewer than two."""
    from scipy import stats

    rows = len(scores)
    if rows < 2:
        return None
    if set(scores) <= {0.0, 1.0}:
        interval = stats.binomtest(round(sum(scores)), rows).proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)
    mean = math.fsum(scores) / rows
    error = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (rows - 1) / rows)
    spread = float(stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1)) * error
    return mean - spread, mean + spread
