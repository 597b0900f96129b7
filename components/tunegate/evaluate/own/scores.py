"""What an answer is worth, by the type of its task: functions of a document and of what was answered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunegate.evaluate.own.scorer import Scorer
from tunegate.evaluate.own.task import OwnTask
from tunegate.evaluate.own.task_file import TaskFile
from tunegate.evaluate.tasks.completion_perplexity import score as perplexity
from tunegate.models import tool_calls

Document = Mapping[str, Any]
Score = Callable[[Document, Sequence[Any]], dict[str, Any]]

#: Type → its metrics with how rows are put together.
METRICS: Mapping[str, Mapping[str, str]] = {
    "exact_match": {"exact": "mean"},
    "multiple_choice": {"acc": "mean", "acc_norm": "mean"},
    "regex": {"match": "mean"},
    "json": {"valid": "mean", "exact": "mean"},
    "tool_call": {"valid": "mean", "exact": "mean"},
    "perplexity": {"nll": "mean", "perplexity": "weighted_perplexity"},
    "python": {"score": "mean"},
}

#: Metrics that are better when lower.
LOWER_IS_BETTER = frozenset({"nll", "perplexity"})


def metrics_of_a_row(kind: str) -> tuple[str, ...]:
    """What a type of task measures of each row; ``perplexity`` is of all rows together."""
    return tuple(metric for metric, aggregation in METRICS[kind].items() if aggregation == "mean")


def scores_of(task: OwnTask) -> Score:
    """The function that scores one row of a task."""
    file = task.file
    if task.scorer is not None:
        return _scored_by(task.scorer, file)
    return {
        "exact_match": lambda doc, results: exact_match(file, doc, results),
        "multiple_choice": multiple_choice,
        "regex": lambda doc, results: regex(file, doc, results),
        "json": json_equal,
        "tool_call": tool_calls.process_results,
        "perplexity": perplexity.process_results,
    }[file.type]


def exact_match(file: TaskFile, doc: Document, results: Sequence[str]) -> dict[str, float]:
    """``exact``: the answer is the right one, white space around it aside."""
    return {"exact": float(_plain(file, results[0]) == _plain(file, doc["expected"]))}


def _plain(file: TaskFile, text: str) -> str:
    return text.strip().casefold() if file.ignore_case else text.strip()


def regex(file: TaskFile, doc: Document, results: Sequence[str]) -> dict[str, float]:
    """``match``: the pattern is in the answer, and what its group (or all of it) finds first is the right answer."""
    found = re.search(file.pattern, results[0], re.IGNORECASE if file.ignore_case else 0)
    if found is None or not file.answer:
        return {"match": float(found is not None)}
    said = found.group(found.re.groups) or ""  # the one group, or the whole where there is none
    return {"match": float(_plain(file, said) == _plain(file, doc["expected"]))}


def json_equal(doc: Document, results: Sequence[str]) -> dict[str, float]:
    """``valid``: the whole answer is JSON; ``exact``: it is the right value, whatever the order of keys."""
    try:
        said = json.loads(results[0].strip(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {"valid": 0.0, "exact": 0.0}
    return {"valid": 1.0, "exact": float(_canonical(said) == _canonical(json.loads(doc["expected"])))}


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _canonical(value: Any) -> str:
    """Text that is equal for equal JSON: true is not 1, and 5.0 is 5."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def multiple_choice(doc: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """``acc``: the right choice is the most likely answer; ``acc_norm``: per byte, as the harness has it."""
    right = doc["options"].index(doc["expected"])
    likelihoods = [likelihood for likelihood, _ in results]
    per_byte = [value / len(text.encode()) for value, text in zip(likelihoods, doc["options"], strict=True)]
    return {
        name: float(max(range(len(values)), key=values.__getitem__) == right)
        for name, values in (("acc", likelihoods), ("acc_norm", per_byte))
    }


def _scored_by(scorer: Scorer, file: TaskFile) -> Score:
    def scored(doc: Document, results: Sequence[str]) -> dict[str, float]:
        row = json.loads(doc["fields"])
        return {"score": scorer.score(row, results[0], row_id=doc["row_id"], score_range=file.score_range)}

    return scored
