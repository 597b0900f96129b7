"""Rules → checks → verdict.

A comparison passes when what is asked is shown at the policy's confidence. All checks must pass, so passing needs no
correction for their number: a model that is truly worse than any one margin is promoted with probability alpha at most,
as far as the check's assumption holds. That is, for a comparison with ``max_row_loss``, that no row loses more than it,
the rows that nobody evaluated included: the rows at hand can refute it and cannot show it. Without it, only the rows
being a random sample is assumed.

A comparison fails when the opposite is shown. One such check is enough to fail the verdict, so these are corrected for
their number (Holm): a model that truly keeps every margin is called worse with probability alpha at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunegate.contracts.champion import CHAMPION_ROLES
from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.verdict import Check, Decision, Verdict
from tunegate.gate.bounds import wilson_bounds
from tunegate.gate.champion import Absent
from tunegate.gate.comparison import ROUNDING, Compared, compare, gains_of, holm, needed_rows, threshold_of
from tunegate.gate.evidence import Evaluation
from tunegate.gate.policy import Policy, Rule
from tunegate.gate.reasons import (
    ROWS_NAMED,
    Shown,
    against,
    compared_rows,
    comparison_reason,
    inconclusive_word,
    outlook,
)
from tunegate.gate.rows import Series, check_paired, in_slice, series
from tunegate.gate.shared import shared_by_worse
from tunegate.gate.units import Sample, sample_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Judged:
    """A rule with its check and the rows behind it, the deciding ones first."""

    rule: Rule
    check: Check
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Paired:
    """The rows of a comparison, paired, and what they say."""

    rule: Rule
    candidate: Series
    reference: Series
    gains: NDArray[np.float64]
    compared: Compared

    @property
    def sample(self) -> Sample:
        """What the comparison is computed on."""
        return sample_of(self.gains, self.candidate.units)


def prepare_rules(
    policy: Policy, evaluations: Mapping[str, Evaluation], *, no_champion: Absent | None = None
) -> list[Judged | Paired]:
    """Each comparison with its rows, in the policy's order; what needs or has none is judged already.

    Args:
        no_champion: how comparisons with the champion end, where it is known that there is none.
    """
    return [_prepared(rule, evaluations, policy, no_champion) for rule in policy.checks]


def judge_rules(prepared: Sequence[Judged | Paired], *, alpha: float) -> list[Judged]:
    """Judges the comparisons together: those that are shown to be worse are corrected for their number."""
    pairs = [item for item in prepared if isinstance(item, Paired)]
    worse = iter(holm([pair.compared.p_enough for pair in pairs], alpha=alpha))
    return [judge_pair(item, alpha, worse=next(worse)) if isinstance(item, Paired) else item for item in prepared]


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
        summary = f"{first.rule} {inconclusive_word(decision)}: {first.reason}"
        if more:
            summary = f"{summary.removesuffix('.')}. And {more} more."
    return Verdict(decision if every else "FAIL", summary, every, dict(subjects), policy.digest)


def _prepared(
    rule: Rule, evaluations: Mapping[str, Evaluation], policy: Policy, no_champion: Absent | None
) -> Judged | Paired:
    """A comparison with its rows, or what is decided already; anything missing or unpaired is a FAIL that says so."""
    if no_champion is not None and rule.reference in CHAMPION_ROLES:
        return Judged(rule, Check(rule.name, no_champion.decision, no_champion.reason, threshold=threshold_of(rule)))
    try:
        candidate = _series(rule, rule.candidate, evaluations)
        reference = _series(rule, rule.reference, evaluations) if rule.compares else candidate
        check_paired(candidate, reference)
        if rule.slice:
            candidate, reference = in_slice(candidate, rule.slice), in_slice(reference, rule.slice)
    except ArtifactError as error:
        reason = f"{error.failed} Seen: {error.seen}; expected: {error.expected}."
        rows = tuple(item.partition(":")[0] for item in error.items[:ROWS_NAMED])
        return Judged(rule, Check(rule.name, "FAIL", reason, threshold=threshold_of(rule), rows=rows))
    if rule.slice and len(candidate.scores) < policy.min_slice_rows:
        reason = (
            f"{len(candidate.scores)} rows carry the tag, and a slice of fewer than {policy.min_slice_rows} decides"
        )
        needed = policy.min_slice_rows
        return Judged(rule, Check(rule.name, "INCONCLUSIVE", f"{reason} nothing", rows_needed=needed))
    if not rule.compares:
        return _judge_limit(rule, candidate, policy.alpha)
    gains = gains_of(rule, candidate, reference)
    return Paired(
        rule, candidate, reference, gains, compare(rule, sample_of(gains, candidate.units), alpha=policy.alpha)
    )


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
    alone = len(set(candidate.units)) == len(candidate.units)
    if alone and rule.score_range is None and set(candidate.scores.tolist()) <= {0.0, 1.0}:
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


def judge_pair(pair: Paired, alpha: float, *, worse: bool) -> Judged:
    """Decides a comparison.

    Args:
        worse: whether the opposite of what is asked is shown, corrected for the number of comparisons.
    """
    rule, compared, gains, sample = pair.rule, pair.compared, pair.gains, pair.sample
    threshold = threshold_of(rule)
    wrong = against(rule, pair.candidate, gains)
    too_bad = [] if rule.max_row_loss is None else [i for i in wrong if gains[i] < -rule.max_row_loss - ROUNDING]
    decision: Decision
    if too_bad or worse:
        decision = "FAIL"
    elif compared.passes(threshold, alpha):
        decision = "PASS"
    else:
        decision = "INCONCLUSIVE"
    undecided = decision == "INCONCLUSIVE"
    needed = needed_rows(rule, sample, alpha=alpha) if undecided else None
    check = Check(
        rule.name,
        decision,
        comparison_reason(rule, pair.candidate, pair.reference, gains, compared, sample, alpha=alpha)
        + (f"; {len(too_bad)} of these rows did" if too_bad else "")
        + (outlook(rule, compared, needed, sample, alpha=alpha) if undecided else ""),
        estimate=compared.estimate,
        lower=compared.lower,
        upper=compared.upper,
        threshold=threshold,
        rows=tuple(pair.candidate.row_ids[i] for i in (too_bad or wrong)[:ROWS_NAMED]),
        rows_needed=needed,
        shared=() if decision == "PASS" else shared_by_worse(pair.candidate, pair.reference, gains),
    )
    return Judged(rule, check, compared_rows(pair.candidate, pair.reference, gains, wrong))
