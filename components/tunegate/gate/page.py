"""The verdict as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.judge import Judged
from tunegate.gate.policy import Policy, Rule
from tunegate.gate.questions import Question
from tunegate.gate.reasons import Shown
from tunegate.pages.forest import Interval, forest_plot
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, facts, paragraph, side_by_side, table

_TEXT_SHOWN = 600


def verdict_page(
    verdict: Verdict, judged: Sequence[Judged], policy: Policy, questions: Mapping[str, Question], *, rows_shown: int
) -> str:
    """The verdict for people: decision, forest plot, every check, the rows that decided.

    Args:
        verdict: what was decided.
        judged: the policy's rules with the rows behind them.
        policy: what was asked.
        questions: row id → what it asked.
        rows_shown: rows per rule.
    """
    counts = Counter(check.decision for check in verdict.checks)
    sections = [
        Section(
            "Decision",
            badge(verdict.decision)
            + paragraph(verdict.summary)
            + "".join(badge("warning") + paragraph(text) for text in verdict.warnings)
            + facts({name: counts.get(name, 0) for name in ("PASS", "FAIL", "INCONCLUSIVE")} | _judgement(verdict)),
        ),
        *_forests(judged, policy.confidence),
        Section("Checks", _checks(verdict.checks)),
    ]
    for item in judged:
        if item.shown and rows_shown:
            sections.append(_rows(item, questions, rows_shown))
    sections.append(
        Section(
            "What was judged",
            table(("artifact", "content digest"), [*verdict.subjects.items(), ("policy", verdict.policy_digest)]),
            "Promotion compares these digests with what it is given.",
        )
    )
    return page(f"Verdict: {verdict.decision}", sections, subtitle="What had to be shown, and what was")


def _judgement(verdict: Verdict) -> dict[str, int]:
    return {} if verdict.judgement is None else {"judgement on these rows": verdict.judgement}


_LIMIT_NOTE = "The observed mean against its limit; the bar is for reading, the limit is on the mean alone."
_COMPARISON_NOTE = (
    "Gain of the candidate over its reference on the same rows, right is better. The bar is the interval between the "
    "one-sided {:.0%} bounds, the mark is what the policy asks: a check passes when the whole bar lies to its right."
)


def _forests(judged: Sequence[Judged], confidence: float) -> list[Section]:
    """A plot for each metric, its slices included: figures of different metrics share no scale."""
    found: dict[str, list[Interval]] = {}
    for item in judged:
        c = item.check
        if c.estimate is not None and c.lower is not None and c.upper is not None and c.threshold is not None:
            what = f"{item.rule.task}.{item.rule.metric}" + ("" if item.rule.compares else ": limits")
            label = c.rule.removeprefix(f"{item.rule.task}.{item.rule.metric}").lstrip(": ")
            found.setdefault(what, []).append(Interval(label, c.estimate, c.lower, c.upper, c.threshold, c.decision))
    notes = {what: _LIMIT_NOTE if what.endswith(": limits") else _COMPARISON_NOTE.format(confidence) for what in found}
    return [Section(what, forest_plot(intervals), notes[what]) for what, intervals in found.items()]


def _checks(checks: Sequence[Check]) -> str:
    rows = [(c.decision, c.rule, c.reason, "" if c.rows_needed is None else c.rows_needed) for c in checks]
    return table(("decision", "check", "why", "rows needed"), rows)


def _rows(item: Judged, questions: Mapping[str, Question], limit: int) -> Section:
    body = "".join(_row(row, item.rule, questions) for row in item.shown[:limit])
    counts = Counter(row.change for row in item.shown)
    listed = ", ".join(f"{count} {change}" for change, count in counts.items())
    shared = "".join(paragraph(said) for said in item.check.shared)
    if shared:
        shared = paragraph("What the rows that got worse share, beyond chance:") + shared
    return Section(f"Rows: {item.rule.name}", shared + body, f"Listed: {listed}; shown: {min(limit, len(item.shown))}.")


def _row(row: Shown, rule: Rule, questions: Mapping[str, Question]) -> str:
    question = questions.get(row.row_id, Question("", ""))
    beside = {}
    if rule.compares and row.reference_score is not None:
        beside[f"{rule.reference}: {row.reference_score:.4g}"] = _short(row.reference_answer)
    beside[f"{rule.candidate}: {row.candidate_score:.4g}"] = _short(row.candidate_answer)
    told = {"asked": _short(question.asked), "expected": _short(question.expected)}
    return side_by_side(f"{row.change} · {row.row_id}", told, beside)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"
