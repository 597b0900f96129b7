"""Choosing some rows of many so that every task is among them, in its share.

A row's task is its column ``task``, which prepare keeps among the row's ``fields``. Rows without one are of one task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.contracts.errors import DataError

Row = Mapping[str, Any]

TASK_COLUMN = "task"


def task_of(row: Row) -> str:
    """The task of a prepared row; empty for one that names none."""
    task = json.loads(row.get("fields") or "{}").get(TASK_COLUMN)
    return task if isinstance(task, str) else ""


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Task → its rows in the order of their ids; tasks in the order of their names."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(row["id"])):
        found.setdefault(task_of(row), []).append(row)
    return dict(sorted(found.items()))


def stratified(rows: Sequence[Row], *, count: int) -> list[Row]:
    """``count`` of the rows, in the order of their ids: of each task its share, and at least one.

    Within a task the rows with the lowest ids are taken: ids are digests, so that is as good as random, and nearly the
    same rows are taken when rows are added. All rows, where there are no more than ``count``.

    Raises:
        DataError: when there are more tasks than rows to take.
    """
    tasks = by_task(rows)
    if len(tasks) > count and len(rows) > count:
        raise DataError(
            "There are more tasks than calibration rows.",
            seen=f"{count} rows for {len(tasks)} tasks",
            expected="at least one row of each task",
            remedy=f"raise num_calibration_samples to {len(tasks)} or more, in prepare and quantize",
            items=list(tasks),
        )
    taken = _shares([len(own) for own in tasks.values()], count)
    chosen = [row for own, number in zip(tasks.values(), taken, strict=True) for row in own[:number]]
    return sorted(chosen, key=lambda row: str(row["id"]))


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of each size, ``count`` in all: one of each, then one by one to that of which least is taken."""
    if count >= sum(sizes):
        return list(sizes)
    taken = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        left = [place for place, size in enumerate(sizes) if taken[place] < size]
        taken[min(left, key=lambda place: taken[place] / sizes[place])] += 1
    return taken
