"""The verdict as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.judge import Judged
from tunegate.gate.policy import Policy
from tunegate.gate.questions import Question
from tunegate.gate.reasons import Shown
from tunegate.pages.charts import Interval, interval_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, facts, paragraph, table

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
            + facts({name: counts.get(name, 0) for name in ("PASS", "FAIL", "INCONCLUSIVE")}),
        ),
        *_forest("Comparisons", [j for j in judged if j.rule.compares], _COMPARISON_NOTE.format(policy.confidence)),
        *_forest("Limits", [j for j in judged if not j.rule.compares], "The observed mean against its limit."),
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


_COMPARISON_NOTE = (
    "Gain of the candidate over its reference on the same rows, right is better. The bar is the interval between the "
    "one-sided {:.0%} bounds, the mark is what the policy asks: a check passes when the whole bar lies to its right."
)


def _forest(heading: str, judged: Sequence[Judged], note: str) -> list[Section]:
    intervals = [
        Interval(c.rule, c.estimate, c.lower, c.upper, c.threshold, c.decision)
        for c in (item.check for item in judged)
        if c.estimate is not None and c.lower is not None and c.upper is not None and c.threshold is not None
    ]
    return [Section(heading, interval_chart(intervals), note)] if intervals else []


def _checks(checks: Sequence[Check]) -> str:
    rows = [(c.decision, c.rule, c.reason, "" if c.rows_needed is None else c.rows_needed) for c in checks]
    return table(("decision", "check", "why", "rows needed"), rows)


def _rows(item: Judged, questions: Mapping[str, Question], limit: int) -> Section:
    compares, rule = item.rule.compares, item.rule
    columns = ["row", "", "question", "expected", *([rule.reference] if compares else []), rule.candidate]
    body = table(columns, [_row(row, questions, compares) for row in item.shown[:limit]])
    counts = Counter(row.change for row in item.shown)
    listed = ", ".join(f"{count} {change}" for change, count in counts.items())
    return Section(f"Rows: {rule.name}", body, f"Listed: {listed}; shown: {min(limit, len(item.shown))}.")


def _row(row: Shown, questions: Mapping[str, Question], compares: bool) -> list[str]:
    question = questions.get(row.row_id, Question("", ""))
    cells = [row.row_id, row.change, _short(question.asked), _short(question.expected)]
    if compares and row.reference_score is not None:
        cells.append(f"{row.reference_score:.4g} · {_short(row.reference_answer)}")
    return [*cells, f"{row.candidate_score:.4g} · {_short(row.candidate_answer)}"]


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"
