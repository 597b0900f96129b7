"""Per-row results: one line for each row, task and metric."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.evaluate.measured import ScoredRow

ROWS_NAME = "rows.parquet"


def metric_name(metric: str, chosen_filter: str) -> str:
    """A metric's name, with its filter where the task has one."""
    return metric if chosen_filter == "none" else f"{metric},{chosen_filter}"


def row_names(samples: Sequence[Mapping[str, Any]], *, ours: bool) -> dict[int, str]:
    """Place in the task → what the row is called, the same for every model.

    A document of the harness is called by its digest; where others before it are equal, with their number behind:
    one that comes twice in a task's data is asked, and counted, twice.

    Args:
        samples: of all rows of the task that are asked; a row has one for each filter.
        ours: see :func:`scored_rows`.
    """
    documents = {int(sample["doc_id"]): sample for sample in samples}
    names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for place in sorted(documents):
        sample = documents[place]
        name = str(sample["doc"]["row_id"] if ours else sample["doc_hash"])
        seen[name] += 1
        names[place] = name if ours or seen[name] == 1 else f"{name}-{seen[name]}"
    return names


def scored_rows(
    task: str, samples: Sequence[Mapping[str, Any]], names: Mapping[int, str], *, ours: bool
) -> tuple[ScoredRow, ...]:
    """The rows of a task's samples, sorted by row and metric.

    Args:
        task: its name.
        samples: as the harness logs them.
        names: what :func:`row_names` says of all of them; fewer rows asked again are called the same.
        ours: whether the documents are ours, with ``row_id``, ``tags`` and ``options``; a column of that name in a
            document of the harness means something else.

    Raises:
        RunError: when the task left rows unscored or scored one twice.
    """
    rows = [row for sample in samples for row in _of_sample(task, sample, names[int(sample["doc_id"])], ours)]
    rows.sort(key=lambda row: (row.row_id, row.metric))
    keys = [(row.row_id, row.metric) for row in rows]
    if not samples or len(set(keys)) != len(keys):
        twice = sorted({key for key, following in itertools.pairwise(keys) if key == following})
        raise RunError(
            "The harness did not score every row exactly once.",
            seen=f"{task}: {len(twice)} results twice" if samples else f"no rows of {task}",
            expected="one score for each row, task and metric",
            remedy="check the task: each row_id must be another one, and each filter another name",
            items=[" · ".join(key) for key in twice],
        )
    return tuple(rows)


def _of_sample(task: str, sample: Mapping[str, Any], name: str, ours: bool) -> list[ScoredRow]:
    prompt = str(sample["arguments"][0][0])
    return [
        ScoredRow(
            row_id=name,
            task=task,
            metric=metric_name(metric, sample["filter"]),
            score=float(sample[metric]),
            prompt_digest=hashlib.sha256(prompt.encode()).hexdigest(),
            answer=_answer(sample, ours),
            tags=tuple(sample["doc"].get("tags") or ()) if ours else (),
            conversation=str(sample["doc"].get("conversation") or "") if ours else "",
        )
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float)  # a tuple is the harness's input to an aggregate, no score of a row
    ]


def _answer(sample: Mapping[str, Any], ours: bool) -> str:
    """What was generated, or the choice that was most likely."""
    answers = sample["filtered_resps"]
    if isinstance(answers[0], str):
        return answers[0]
    options = sample["doc"].get("options") if ours else None
    if not options:
        return ""
    return str(options[max(range(len(options)), key=lambda place: answers[place][0])])


def write_rows(rows: Sequence[ScoredRow], folder: Path) -> None:
    """Writes ``rows.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, schema_fields = pa.string(), []
    for name in ("row_id", "task", "metric"):
        schema_fields.append(pa.field(name, text))
    schema_fields.append(pa.field("score", pa.float64()))
    schema_fields += [pa.field("prompt_digest", text), pa.field("answer", text), pa.field("tags", pa.list_(text))]
    schema_fields.append(pa.field("conversation", text))
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=pa.schema(schema_fields))
    pq.write_table(table, folder / ROWS_NAME)
