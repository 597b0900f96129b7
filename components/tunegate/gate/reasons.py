"""Why a check was decided as it was: its sentence, and the rows behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunegate.contracts.verdict import Decision
from tunegate.gate.comparison import Compared, close_or_below, threshold_of
from tunegate.gate.policy import Rule
from tunegate.gate.rows import Series
from tunegate.gate.units import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: How many deciding rows a check names.
ROWS_NAMED = 20


@dataclass(frozen=True)
class Shown:
    """A row that decided a check, or flipped: what both models said. The reference is empty for a limit."""

    row_id: str
    change: str
    candidate_score: float
    candidate_answer: str
    reference_score: float | None = None
    reference_answer: str = ""


def comparison_reason(
    rule: Rule, candidate: Series, reference: Series, gains: Array, compared: Compared, sample: Sample, *, alpha: float
) -> str:
    """The figures of a comparison in one sentence."""
    threshold = threshold_of(rule)
    asked = f"above {threshold:+g}" if rule.kind == "margin" else f"at least {threshold:+g}"
    worse, better = int((gains < 0).sum()), int((gains > 0).sum())
    means = f"{rule.candidate} {candidate.scores.mean():.4g}, {rule.reference} {reference.scores.mean():.4g}"
    means += " (lower is better)" if rule.direction == "lower" else ""
    grouped = (
        f" of {len(sample.gains)} conversations, each judged by the mean gain of its rows" if sample.grouped else ""
    )
    return (
        f"{means} on {len(gains)} rows{grouped}: {better} better, {worse} worse; gain {compared.estimate:+.4g}, with "
        f"{1 - alpha:.0%} confidence at least {compared.lower:+.4g} (at most {compared.upper:+.4g}); asked: {asked}"
        + (f"; assumes that no row loses more than {rule.max_row_loss:g}" if rule.max_row_loss is not None else "")
    )


def outlook(rule: Rule, compared: Compared, needed: int | None, sample: Sample, *, alpha: float) -> str:
    """What would decide a comparison that these rows do not."""
    threshold = threshold_of(rule)
    if needed is not None:
        return f"; about {needed} such {'conversations' if sample.grouped else 'rows'} would show it"
    if compared.p_enough <= alpha:
        return (
            "; the upper bound is below that, and among so many comparisons this is not shown yet (Holm): more such "
            "rows would show that it fails"
        )
    if close_or_below(compared.estimate, threshold):
        return "; more rows would not help: the observed gain itself is not enough"
    if rule.score_range is None:
        return "; no number of them that one could gather would show it"
    return "; no number of such rows would show it: the score_range is too wide, state a max_row_loss"


def against(rule: Rule, candidate: Series, gains: Array) -> list[int]:
    """The rows that speak against it, worst first: they got worse, or are still not right where a gain is asked."""
    missed = rule.kind == "required_gain" and rule.score_range is None
    return [i for i in gains.argsort(kind="stable").tolist() if gains[i] < 0 or (missed and candidate.scores[i] == 0)]


def compared_rows(candidate: Series, reference: Series, gains: Array, worse: list[int]) -> tuple[Shown, ...]:
    """The first rows that speak against the candidate, then the first that got better."""
    known = set(worse)
    better = [i for i in (-gains).argsort(kind="stable").tolist() if gains[i] > 0 and i not in known]
    return tuple(
        Shown(
            candidate.row_ids[i],
            "worse" if gains[i] < 0 else "better" if gains[i] > 0 else "missed by both",
            float(candidate.scores[i]),
            candidate.answers[i],
            float(reference.scores[i]),
            reference.answers[i],
        )
        for i in [*worse[:ROWS_NAMED], *better[:ROWS_NAMED]]
    )


def inconclusive_word(decision: Decision) -> str:
    """How a summary calls a check that was not passed."""
    return "fails" if decision == "FAIL" else "cannot be decided"
