"""Per-row results: one line for each row, task and metric."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.evaluate.harness import Measured, metric_name

ROWS_NAME = "rows.parquet"


@dataclass(frozen=True)
class ScoredRow:
    """One row's score in one metric.

    Attributes:
        row_id: the data set's row; for a task of the harness, the digest of its document.
        score: higher is better unless the metric says otherwise (``nll`` is better when lower).
        prompt_digest: sha256 of the prompt as the model saw it.
        answer: what the model generated; empty where nothing is generated.
        tags: slices that the row belongs to.
    """

    row_id: str
    task: str
    metric: str
    score: float
    prompt_digest: str
    answer: str
    tags: tuple[str, ...] = ()


def scored_rows(measured: Mapping[str, Measured]) -> list[ScoredRow]:
    """The rows of every task, sorted by task, row and metric.

    Raises:
        RunError: when a task left rows unscored or scored one twice.
    """
    rows = [row for task, found in measured.items() for sample in found.samples for row in _of_sample(task, sample)]
    rows.sort(key=lambda row: (row.task, row.row_id, row.metric))
    keys = [(row.task, row.row_id, row.metric) for row in rows]
    empty = [task for task, found in measured.items() if not found.samples]
    if empty or len(set(keys)) != len(keys):
        twice = sorted({key for key, following in itertools.pairwise(keys) if key == following})
        raise RunError(
            "The harness did not score every row exactly once.",
            seen=f"no rows of {', '.join(empty)}" if empty else f"{len(twice)} results twice",
            expected="one score for each row, task and metric",
            remedy="check the task's YAML: each document needs its own row_id",
            items=[" · ".join(key) for key in twice],
        )
    return rows


def _of_sample(task: str, sample: Mapping[str, Any]) -> list[ScoredRow]:
    prompt = str(sample["arguments"][0][0])
    answer = sample["filtered_resps"][0]
    return [
        ScoredRow(
            row_id=str(sample["doc"].get("row_id", sample["doc_hash"])),
            task=task,
            metric=metric_name(metric, sample["filter"]),
            score=float(sample[metric]),
            prompt_digest=hashlib.sha256(prompt.encode()).hexdigest(),
            answer=answer if isinstance(answer, str) else "",
        )
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float)  # a tuple is the harness's input to an aggregate, no score of a row
    ]


def write_rows(rows: list[ScoredRow], folder: Path) -> None:
    """Writes ``rows.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, schema_fields = pa.string(), []
    for name in ("row_id", "task", "metric"):
        schema_fields.append(pa.field(name, text))
    schema_fields.append(pa.field("score", pa.float64()))
    schema_fields += [pa.field("prompt_digest", text), pa.field("answer", text), pa.field("tags", pa.list_(text))]
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=pa.schema(schema_fields))
    pq.write_table(table, folder / ROWS_NAME)
