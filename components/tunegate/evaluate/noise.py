"""The noise floor: how much a model's results change when nothing but the batching does.

Sums in another order round differently, and padding and kernels depend on the batch: at a close call the other token
wins. A difference between two models below what one model differs from itself says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunegate.evaluate.measured import Measured, Noise, ScoredRow


def again(rows_at_once: int) -> int:
    """How many rows are answered at once the second time: one, or two where it was one."""
    return 1 if rows_at_once > 1 else 2


def rows_again(samples: Mapping[str, Sequence[Mapping[str, Any]]], count: int) -> dict[str, list[int]]:
    """Which rows are asked again: ``count``, evenly from all rows of all parts of a task; part → places."""
    every = sorted({(name, sample["doc_id"]) for name, found in samples.items() for sample in found})
    chosen: dict[str, list[int]] = {}
    for place in sorted({int(i * len(every) / count) for i in range(count)}):
        name, doc_id = every[place]
        chosen.setdefault(name, []).append(doc_id)
    return chosen


def compared(measured: Measured, second: Sequence[ScoredRow], *, rows_at_once: int) -> Measured:
    """``measured`` with the noise that the second answers show."""
    first = {(row.row_id, row.metric): row for row in measured.rows}
    pairs = [(first[row.row_id, row.metric], row) for row in second]
    metrics = sorted({row.metric for row in second})
    changes = {name: [abs(b.score - a.score) for a, b in pairs if b.metric == name] for name in metrics}
    noise = Noise(
        rows=len({row.row_id for row in second}),
        rows_at_once=rows_at_once,
        answers_changed=len({b.row_id for a, b in pairs if a.answer != b.answer}),
        scores_changed={name: sum(change > 0 for change in found) for name, found in changes.items()},
        largest_change={name: max(found) for name, found in changes.items()},
    )
    return replace(measured, noise=noise)
