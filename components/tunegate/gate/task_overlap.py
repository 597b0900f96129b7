"""Rows of the tasks themselves that the model was trained on: a task of a user's own, or of the harness.

Prepare keeps the data set's evaluation rows apart from its train rows. A task that brings its own rows is compared with
them by evaluate, which states the counts in its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.contracts.verdict import Check
from tunegate.gate.policy import OverlapLimits

KINDS = ("exact", "near")


def check_task_overlap(results: Mapping[str, Mapping[str, Any]], limits: OverlapLimits) -> list[Check]:
    """One check where any task brings its own rows, none where all ask the data set's.

    Args:
        results: role → its evaluation's ``results.json``. ``overlap`` names every task with rows of its own, with how
            many of them are among the rows that were trained on; an evaluation that does not say is a FAIL.
        limits: how many rows of a task may be.
    """
    stated = {role: found.get("overlap") for role, found in results.items()}
    if all(counts == {} for counts in stated.values()):
        return []
    problems, seen = [], {}
    for role, tasks in stated.items():
        if not isinstance(tasks, Mapping):
            problems.append(f"{role} does not say whether its tasks' rows were trained on")
            continue
        for task, counts in tasks.items():
            unknown = [kind for kind in KINDS if not _is_count(counts, kind)]
            if unknown:
                problems.append(f"{role} counts no {' and no '.join(unknown)} overlap of {task}")
                continue
            seen[task] = told = f"{task}: {counts['exact']} exact and {counts['near']} near"
            if any(counts[kind] > getattr(limits, kind) for kind in KINDS):
                problems.append(f"{told}{_examples(counts)}")
    rule = f"train rows are not among the tasks' own rows (exact {limits.exact}, near {limits.near} allowed)"
    reason = "; ".join(dict.fromkeys(problems)) or "; ".join(seen.values())
    return [Check(rule, "FAIL" if problems else "PASS", reason)]


def _is_count(counts: Any, kind: str) -> bool:
    value = counts.get(kind) if isinstance(counts, Mapping) else None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _examples(counts: Mapping[str, Any]) -> str:
    examples = counts.get("examples")
    rows = [str(e.get("row_id")) for e in examples if isinstance(e, Mapping)] if isinstance(examples, list) else []
    return f" (rows {', '.join(rows[:5])})" if rows else ""
