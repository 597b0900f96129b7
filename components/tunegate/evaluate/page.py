"""The picture of an evaluation: its scores, the slices they fall into, and what the model said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.evaluate.interval import mean_interval
from tunegate.evaluate.measured import Measured, ScoredRow
from tunegate.pages.charts import histogram
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table

#: How many answers of each task the page shows, and how long a prompt may be there.
ANSWERS_SHOWN = 12
PROMPT_CHARACTERS = 400

#: Slices of fewer rows say nothing of their own.
SLICE_ROWS = 5

_LOWER = ("nll", "perplexity")


def evaluation_page(results: Mapping[str, Any], measured: Mapping[str, Measured]) -> str:
    """The page of one evaluated model.

    Args:
        results: ``results.json``.
        measured: task → what was found.
    """
    sections = [
        _scores(measured),
        *_slices(measured),
        *_distributions(measured),
        *_answers(measured),
        *_noise(results),
        *_overlap(results),
        Section("How it was measured", facts({**results["engine"], **_settings(results)})),
    ]
    return page("Evaluation", sections, subtitle=f"model {results['model_digest'][:12]}")


def _settings(results: Mapping[str, Any]) -> dict[str, object]:
    size = f"{results['model_bytes'] / 1e6:,.1f} MB"
    return {"model size": size, "most new tokens": results["settings"]["max_new_tokens"]}


def _by_metric(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    found: dict[str, list[ScoredRow]] = defaultdict(list)
    for row in rows:
        found[row.metric].append(row)
    return found


def _scores(measured: Mapping[str, Measured]) -> Section:
    lines = []
    for task, found in measured.items():
        rows = _by_metric(found.rows)
        for metric, value in sorted(found.aggregates.items()):
            scores = [row.score for row in rows.get(metric, ())]
            lines.append((task, metric, value, _interval(scores), len(scores) or len(found.asked)))
    note = (
        "The interval is where the mean of all such rows lies with 95 % confidence; the gate compares models row by "
        "row instead. Perplexity is taken over all tokens, and like nll it is better when lower."
    )
    return Section("Scores", table(("task", "metric", "mean", "95 % interval", "rows"), lines), note)


def _interval(scores: Sequence[float]) -> str:
    bounds = mean_interval(scores)
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}" if bounds else "–"


def _slices(measured: Mapping[str, Measured]) -> list[Section]:
    """The means of each slice that is not all rows, where rows have tags."""
    lines = []
    for task, found in measured.items():
        for metric, rows in sorted(_by_metric(found.rows).items()):
            slices: dict[str, list[float]] = defaultdict(list)
            for row in rows:
                for tag in row.tags:
                    slices[tag].append(row.score)
            lines += [
                (task, metric, tag, sum(scores) / len(scores), _interval(scores), len(scores))
                for tag, scores in sorted(slices.items(), key=lambda found: _in_order(found[0]))
                if SLICE_ROWS <= len(scores) < len(rows)
            ]
    if not lines:
        return []
    columns = ("task", "metric", "slice", "mean", "95 % interval", "rows")
    return [Section("Slices", table(columns, lines), f"Slices of at least {SLICE_ROWS} rows.")]


def _in_order(tag: str) -> tuple[str, float, str]:
    """Slices of numbers by the number."""
    column, _, value = tag.partition("=")
    try:
        return column, float(value), ""
    except ValueError:
        return column, 0.0, value


def _distributions(measured: Mapping[str, Measured]) -> list[Section]:
    """A histogram of each metric that is not just right or wrong."""
    return [
        Section(f"{task}: {metric} of each row", histogram({metric: scores}, x=metric))
        for task, found in measured.items()
        for metric, rows in sorted(_by_metric(found.rows).items())
        if not set(scores := [row.score for row in rows]) <= {0.0, 1.0}
    ]


def _answers(measured: Mapping[str, Measured]) -> list[Section]:
    """What was asked and expected beside what the model said: the worst first."""
    sections = []
    for task, found in measured.items():
        groups: dict[str, list[ScoredRow]] = defaultdict(list)
        for row in found.rows:
            groups[row.row_id].append(row)
        lines = sorted((_badness(group), row_id) for row_id, group in groups.items())
        shown = [_line(row_id, groups[row_id], found) for _, row_id in lines[:ANSWERS_SHOWN]]
        body = table(("row and scores", "asked", "expected", "answer"), shown)
        sections.append(
            Section(f"{task}: the worst rows", body, f"{len(shown)} of {len(lines)} rows, the worst first.")
        )
    return sections


def _badness(group: Sequence[ScoredRow]) -> float:
    return sum(-row.score if row.metric in _LOWER else row.score for row in group)


def _line(row_id: str, group: Sequence[ScoredRow], found: Measured) -> tuple[str, ...]:
    asked = found.asked[row_id]
    answer = group[0].answer or "(only its likelihood is asked)"
    marks = ", ".join(f"{row.metric} {row.score:.3g}" for row in group)
    return f"{row_id}: {marks}", _short(asked.question), _short(asked.expected), _short(answer)


def _short(text: str) -> str:
    return text if len(text) <= PROMPT_CHARACTERS else text[:PROMPT_CHARACTERS] + " …"


def _noise(results: Mapping[str, Any]) -> list[Section]:
    lines = [
        (task, metric, noise["rows"], noise["answers_changed"], changed, noise["largest_change"][metric])
        for task, noise in results["noise"].items()
        for metric, changed in noise["scores_changed"].items()
    ]
    if not lines:
        return []
    columns = ("task", "metric", "rows asked again", "answers changed", "scores changed", "largest change")
    note = "The same model, with nothing but the batches changed: a smaller difference between two models says nothing."
    return [Section("Noise floor", table(columns, lines), note)]


def _overlap(results: Mapping[str, Any]) -> list[Section]:
    if not results["overlap"]:
        return []
    counts = [(task, found["exact"], found["near"]) for task, found in results["overlap"].items()]
    pairs = [
        (task, e["row_id"], e["learned_id"], e["part"], e["kind"], e["similarity"])
        for task, found in results["overlap"].items()
        for e in found["examples"]
    ]
    body = table(("task", "exact", "near"), counts)
    if pairs:
        body += table(("task", "row", "train row", "part", "kind", "similarity"), pairs, caption="examples")
    note = "Rows of these tasks that are among the rows that training saw. The gate allows as many as its policy says."
    return [Section("Rows that were trained on", body, note)]
