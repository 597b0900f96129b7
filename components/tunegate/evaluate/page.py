"""The picture of an evaluation: its scores, and what the model said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.evaluate.documents import Document
from tunegate.evaluate.rows import ScoredRow
from tunegate.pages.charts import histogram
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table

#: How many answers of each kind the page shows.
ANSWERS_SHOWN = 12


def evaluation_page(results: Mapping[str, Any], rows: Sequence[ScoredRow], docs: Sequence[Document]) -> str:
    """The page of one evaluated model."""
    scores = [
        (task, metric, value, found["rows"])
        for task, found in results["tasks"].items()
        for metric, value in found["metrics"].items()
    ]
    sections = [
        Section("Scores", table(("task", "metric", "mean", "rows"), scores), "perplexity is taken over all tokens."),
        *_distributions(rows),
        *_answers(rows, docs),
        Section("How it was measured", facts({**results["engine"], **_settings(results)})),
    ]
    return page("Evaluation", sections, subtitle=f"model {results['model_digest'][:12]}")


def _settings(results: Mapping[str, Any]) -> dict[str, object]:
    size = f"{results['model_bytes'] / 1e6:,.1f} MB"
    return {"model size": size, "most new tokens": results["settings"]["max_new_tokens"]}


def _distributions(rows: Sequence[ScoredRow]) -> list[Section]:
    """A histogram of each metric that is not just right or wrong."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row.task, row.metric].append(row.score)
    return [
        Section(f"{task}: {metric} of each row", histogram({metric: scores}, x=metric))
        for (task, metric), scores in values.items()
        if not set(scores) <= {0.0, 1.0}
    ]


def _answers(rows: Sequence[ScoredRow], docs: Sequence[Document]) -> list[Section]:
    """What the model generated beside what was expected: wrong answers first."""
    expected = {doc["row_id"]: doc["expected"] for doc in docs}
    answered: dict[tuple[str, str], list[ScoredRow]] = defaultdict(list)
    for row in rows:
        if row.answer:
            answered[row.task, row.row_id].append(row)
    sections = []
    for task in sorted({task for task, _ in answered}):
        lines = [
            (sum(r.score for r in group), row_id, expected.get(row_id, ""), group[0].answer, _marks(group))
            for (of, row_id), group in answered.items()
            if of == task
        ]
        lines.sort(key=lambda line: line[:2])
        shown = [line[1:] for line in lines[:ANSWERS_SHOWN] + lines[ANSWERS_SHOWN:][-ANSWERS_SHOWN:]]
        body = table(("row", "expected", "answer", "scores"), shown) if shown else paragraph("No answers.")
        sections.append(
            Section(f"{task}: answers", body, f"{len(shown)} of {len(lines)} rows, the lowest scores first.")
        )
    return sections


def _marks(group: Sequence[ScoredRow]) -> str:
    return ", ".join(f"{row.metric} {row.score:g}" for row in group)
