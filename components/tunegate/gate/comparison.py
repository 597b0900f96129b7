"""One comparison of paired rows: its estimate, its bounds, and how far the rows speak for either side of the threshold.

Scores of 0 and 1 are judged by an exact test, real scores and the means of conversations by betting; both hold at every
number of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunegate.gate.betting import betting_bounds, betting_p_value
from tunegate.gate.bounds import rows_needed, tango_bounds
from tunegate.gate.exact import exact_bounds, exact_p_value, mcnemar_p_value
from tunegate.gate.policy import Rule
from tunegate.gate.rows import Series
from tunegate.gate.units import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: What a difference of two scores may be off by.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Compared:
    """What the rows say of a mean gain.

    Attributes:
        estimate: the observed mean gain.
        lower, upper: one-sided bounds, each at alpha.
        p_short: p-value of 'the true gain is the threshold or less': small speaks for the candidate.
        p_enough: p-value of 'the true gain is the threshold or more': small speaks against it.
        p_no_gain: of the exact McNemar test, where a gain is required of scores of 0 and 1; None elsewhere.
    """

    estimate: float
    lower: float
    upper: float
    p_short: float
    p_enough: float
    p_no_gain: float | None = None

    def shown(self, alpha: float) -> bool:
        """Whether the rows refute at ``alpha`` that what is asked for is missed."""
        return self.p_short <= alpha and (self.p_no_gain is None or self.p_no_gain <= alpha)

    def passes(self, threshold: float, alpha: float) -> bool:
        """Whether what is asked for is shown, and nothing else of these figures speaks against it.

        Betting may have won its case on the way and lost it at the end: then the estimate or the bounds say so.
        """
        return self.shown(alpha) and self.estimate > threshold and threshold <= self.lower <= self.upper


def threshold_of(rule: Rule) -> float:
    """The mean gain that must be shown."""
    return -rule.limit if rule.kind == "margin" else rule.limit


def gains_of(rule: Rule, candidate: Series, reference: Series) -> Array:
    """How much better the candidate is on each row, whichever scores are better."""
    raw = candidate.scores - reference.scores
    return raw if rule.direction == "higher" else -raw


def compare(rule: Rule, sample: Sample, *, alpha: float) -> Compared:
    """The rule's comparison on these rows: all of them, or those of a slice."""
    threshold, gains = threshold_of(rule), sample.gains
    if _exactly(rule, sample):
        won, lost, rows = int((gains > 0).sum()), int((gains < 0).sum()), len(gains)
        lower, upper = exact_bounds(won, lost, rows, alpha=alpha, threshold=threshold)
        return Compared(
            float(gains.mean()),
            lower,
            upper,
            p_short=_exact(won, lost, rows, threshold),
            p_enough=enough_p_value(rule, sample, alpha=alpha),
            p_no_gain=mcnemar_p_value(won, lost) if rule.kind == "required_gain" else None,
        )
    lowest, highest = row_range(rule, sample)
    lower, upper = betting_bounds(gains, lowest=lowest, highest=highest, alpha=alpha)
    return Compared(
        float(gains.mean()),
        lower,
        upper,
        p_short=float(betting_p_value(gains, threshold, lowest=lowest, alpha=alpha)),
        p_enough=enough_p_value(rule, sample, alpha=alpha),
    )


def enough_p_value(rule: Rule, sample: Sample, *, alpha: float) -> float:
    """The p-value of 'the true gain is what is asked, or more': small speaks against the candidate."""
    threshold, gains = threshold_of(rule), sample.gains
    if _exactly(rule, sample):
        return _exact(int((gains < 0).sum()), int((gains > 0).sum()), len(gains), -threshold)
    _, highest = row_range(rule, sample)
    return float(betting_p_value(-gains, -threshold, lowest=-highest, alpha=alpha))


def _exactly(rule: Rule, sample: Sample) -> bool:
    """Whether every gain is -1, 0 or 1."""
    return rule.score_range is None and not sample.grouped


def row_range(rule: Rule, sample: Sample) -> tuple[float, float]:
    """The least and the greatest gain that a row can have, and so the mean of several."""
    width = rule.width
    limit = rule.max_row_loss or width
    if sample.worst < -limit - ROUNDING:  # the declaration does not hold, so nothing may rest on it
        limit = width
    return -limit, width


def needed_rows(rule: Rule, sample: Sample, *, alpha: float) -> int | None:
    """About how many units would show it, if more came out like these; None when no number would."""
    import numpy as np

    threshold, gains = threshold_of(rule), sample.gains
    if gains.mean() <= threshold:
        return None
    if _exactly(rule, sample):
        won, lost = float((gains > 0).mean()), float((gains < 0).mean())
        return rows_needed(len(gains), lambda n: tango_bounds(won * n, lost * n, n, alpha=alpha)[0] > threshold)
    lowest, _ = row_range(rule, sample)

    def shown_with(rows: int) -> bool:
        return float(betting_p_value(np.resize(gains, rows), threshold, lowest=lowest, alpha=alpha)) <= alpha

    return rows_needed(len(gains), shown_with)


def holm(p_values: list[float], *, alpha: float) -> list[bool]:
    """Which hypotheses are refuted when the chance that a true one is among them may be ``alpha``.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    refuted = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        refuted[index] = True
    return refuted


def _exact(won: int, lost: int, rows: int, threshold: float) -> float:
    """A gain of 1 or more is never too small a thing to ask, and one of -1 or less is always there."""
    if not -1 < threshold < 1:
        return 1.0 if threshold >= 1 else 0.0
    return exact_p_value(won, lost, rows, threshold)


def close_or_below(estimate: float, threshold: float) -> bool:
    """Whether the observed gain itself is not enough."""
    return estimate < threshold or math.isclose(estimate, threshold)
