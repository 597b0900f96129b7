"""Rules → checks → verdict.

A comparison is judged by one-sided bounds at the policy's confidence. All checks must pass, so passing needs no
correction for their number: a model that is truly worse than any one margin is promoted with probability alpha at most,
as far as the check's assumption holds. That is, for a comparison with ``max_row_loss``, that no row loses more than it,
the rows that nobody evaluated included: the rows at hand can refute it and cannot show it. Without it, only the rows
being a random sample is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.verdict import Check, Decision, Verdict
from tunegate.gate.bounds import betting_bounds, rows_needed, tango_bounds, wilson_bounds
from tunegate.gate.evidence import Evaluation
from tunegate.gate.policy import Policy, Rule
from tunegate.gate.rows import Series, check_paired, series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How many deciding rows a check names.
ROWS_NAMED = 20

#: What a difference of two scores may be off by.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Shown:
    """A row that decided a check, or flipped: what both models said. The reference is empty for a limit."""

    row_id: str
    change: str
    candidate_score: float
    candidate_answer: str
    reference_score: float | None = None
    reference_answer: str = ""


@dataclass(frozen=True)
class Judged:
    """A rule with its check and the rows behind it, the deciding ones first."""

    rule: Rule
    check: Check
    shown: tuple[Shown, ...] = ()


def judge_rule(rule: Rule, evaluations: Mapping[str, Evaluation], *, alpha: float) -> Judged:
    """Judges one rule; anything that is missing, doubled, unpaired or not finite is a FAIL that says so."""
    try:
        candidate = _series(rule, rule.candidate, evaluations)
        if not rule.compares:
            return _judge_limit(rule, candidate, alpha)
        reference = _series(rule, rule.reference, evaluations)
        check_paired(candidate, reference)
    except ArtifactError as error:
        reason = f"{error.failed} Seen: {error.seen}; expected: {error.expected}."
        rows = tuple(item.partition(":")[0] for item in error.items[:ROWS_NAMED])
        return Judged(rule, Check(rule.name, "FAIL", reason, threshold=_threshold(rule), rows=rows))
    return _judge_comparison(rule, candidate, reference, alpha)


def decide(
    checks: Sequence[Check], *, subjects: Mapping[str, str], policy: Policy, judged: Sequence[Judged] = ()
) -> Verdict:
    """The whole verdict: FAIL if any check fails, else INCONCLUSIVE if any is, else PASS."""
    every = (*checks, *(item.check for item in judged))
    by = {decision: [check for check in every if check.decision == decision] for decision in ("FAIL", "INCONCLUSIVE")}
    decision: Decision = "FAIL" if by["FAIL"] else "INCONCLUSIVE" if by["INCONCLUSIVE"] else "PASS"
    if not every or decision == "PASS":
        summary = f"All {len(every)} checks hold at {policy.confidence:.0%} confidence."
    else:
        first, more = by[decision][0], len(by[decision]) - 1
        what = "fails" if decision == "FAIL" else "cannot be decided"
        summary = f"{first.rule} {what}: {first.reason}" + (f" And {more} more." if more else "")
    return Verdict(decision if every else "FAIL", summary, every, dict(subjects), policy.digest)


def _series(rule: Rule, role: str, evaluations: Mapping[str, Evaluation]) -> Series:
    evaluation = evaluations.get(role)
    if evaluation is None or evaluation.rows is None:
        raise ArtifactError(
            f"There are no rows of the {role} model.",
            seen=evaluation.problem if evaluation else "no evaluation",
            expected="its evaluation",
            remedy="evaluate it",
        )
    return series(evaluation.rows, rule, role, evaluation.results)


def _judge_limit(rule: Rule, candidate: Series, alpha: float) -> Judged:
    """A floor or ceiling holds or is broken by the observed mean: a sanity limit, which needs no confidence."""
    mean = float(candidate.scores.mean())
    holds = mean >= rule.limit if rule.kind == "floor" else mean <= rule.limit
    reason = f"mean {mean:.4g} of {len(candidate.scores)} rows, {rule.kind} {rule.limit:g}"
    lower = upper = None
    if rule.score_range is None and set(candidate.scores.tolist()) <= {0.0, 1.0}:
        lower, upper = wilson_bounds(float(candidate.scores.sum()), len(candidate.scores), alpha=alpha)
    order = candidate.scores.argsort(kind="stable")[:: 1 if rule.kind == "floor" else -1]
    worst = [int(i) for i in order if (candidate.scores[i] < rule.limit) == (rule.kind == "floor")][:ROWS_NAMED]
    check = Check(
        rule.name,
        "PASS" if holds else "FAIL",
        reason,
        estimate=mean,
        lower=lower,
        upper=upper,
        threshold=rule.limit,
        rows=() if holds else tuple(candidate.row_ids[i] for i in worst),
    )
    shown = [Shown(candidate.row_ids[i], "missed", float(candidate.scores[i]), candidate.answers[i]) for i in worst]
    return Judged(rule, check, () if holds else tuple(shown))


def _judge_comparison(rule: Rule, candidate: Series, reference: Series, alpha: float) -> Judged:
    raw = candidate.scores - reference.scores
    gains = raw if rule.direction == "higher" else -raw
    rows = len(gains)
    lower, upper = _bounds(rule, gains, rows, alpha)
    threshold = _threshold(rule)
    shown_rows = [i for i in gains.argsort(kind="stable").tolist() if _counts_against(rule, candidate, gains, i)]
    decision: Decision
    too_bad = [] if rule.max_row_loss is None else [i for i in shown_rows if gains[i] < -rule.max_row_loss - _ROUNDING]
    if too_bad or upper < threshold:
        decision = "FAIL"
    elif lower > threshold or (rule.kind == "required_gain" and lower == threshold):
        decision = "PASS"
    else:
        decision = "INCONCLUSIVE"
    needed = _needed(rule, gains, alpha) if decision == "INCONCLUSIVE" else None
    check = Check(
        rule.name,
        decision,
        _reason(rule, candidate, reference, gains, (lower, upper), alpha)
        + (f"; {len(too_bad)} of these rows did" if too_bad else "")
        + _outlook(rule, decision, gains, needed),
        estimate=float(gains.mean()),
        lower=lower,
        upper=upper,
        threshold=threshold,
        rows=tuple(candidate.row_ids[i] for i in (too_bad or shown_rows)[:ROWS_NAMED]),
        rows_needed=needed,
    )
    against = set(shown_rows)
    better = [i for i in (-gains).argsort(kind="stable").tolist() if gains[i] > 0 and i not in against]
    listed = [*shown_rows[:ROWS_NAMED], *better[:ROWS_NAMED]]
    return Judged(rule, check, tuple(_shown(candidate, reference, gains, i) for i in listed))


def _bounds(rule: Rule, gains: NDArray[np.float64], rows: int, alpha: float) -> tuple[float, float]:
    """Bounds for the mean gain if ``rows`` rows came out like these."""
    import numpy as np

    if rule.score_range is None:
        scale = rows / len(gains)
        return tango_bounds((gains > 0).sum() * scale, (gains < 0).sum() * scale, rows, alpha=alpha)
    width = rule.score_range[1] - rule.score_range[0]
    limit = rule.max_row_loss or width
    if gains.min() < -limit - _ROUNDING:  # the declaration does not hold, so nothing may rest on it
        limit = width
    return betting_bounds(np.resize(gains, rows), lowest=-limit, highest=width, alpha=alpha)


def _needed(rule: Rule, gains: NDArray[np.float64], alpha: float) -> int | None:
    if gains.mean() <= _threshold(rule):
        return None
    return rows_needed(len(gains), lambda rows: _bounds(rule, gains, rows, alpha)[0] > _threshold(rule))


def _threshold(rule: Rule) -> float:
    return -rule.limit if rule.kind == "margin" else rule.limit


def _counts_against(rule: Rule, candidate: Series, gains: NDArray[np.float64], index: int) -> bool:
    """Whether a row speaks against the candidate: it got worse, or is still not right where a gain is asked for."""
    missed = rule.kind == "required_gain" and rule.score_range is None and candidate.scores[index] == 0
    return bool(gains[index] < 0 or missed)


def _shown(candidate: Series, reference: Series, gains: NDArray[np.float64], index: int) -> Shown:
    gain = gains[index]
    return Shown(
        candidate.row_ids[index],
        "worse" if gain < 0 else "better" if gain > 0 else "missed by both",
        float(candidate.scores[index]),
        candidate.answers[index],
        float(reference.scores[index]),
        reference.answers[index],
    )


def _reason(
    rule: Rule,
    candidate: Series,
    reference: Series,
    gains: NDArray[np.float64],
    bounds: tuple[float, float],
    alpha: float,
) -> str:
    asked = f"above {_threshold(rule):+g}" if rule.kind == "margin" else f"at least {rule.limit:+g}"
    worse, better = int((gains < 0).sum()), int((gains > 0).sum())
    means = f"{rule.candidate} {candidate.scores.mean():.4g}, {rule.reference} {reference.scores.mean():.4g}"
    means += " (lower is better)" if rule.direction == "lower" else ""
    return (
        f"{means} on {len(gains)} rows: {better} better, {worse} worse; gain {gains.mean():+.4g}, with {1 - alpha:.0%} "
        f"confidence at least {bounds[0]:+.4g} (at most {bounds[1]:+.4g}); asked: {asked}"
        + (f"; assumes that no row loses more than {rule.max_row_loss:g}" if rule.max_row_loss is not None else "")
    )


def _outlook(rule: Rule, decision: Decision, gains: NDArray[np.float64], needed: int | None) -> str:
    if decision != "INCONCLUSIVE":
        return ""
    if needed is not None:
        return f"; about {needed} such rows would show it"
    if math.isclose(gains.mean(), _threshold(rule)) or gains.mean() < _threshold(rule):
        return "; more rows would not help: the observed gain itself is not enough"
    return "; no number of such rows would show it: the score_range is too wide, state a max_row_loss"
