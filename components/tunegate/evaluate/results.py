"""The results of one model as documents: all of them, and the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunegate.contracts.progress import say
from tunegate.evaluate.asked import Task
from tunegate.evaluate.halving import STEP
from tunegate.evaluate.measured import Measured

SCHEMA_VERSION = 1

#: Task → what was found of it and of its parts: a group of the harness has several.
Found = Sequence[tuple[Task, Mapping[str, Measured]]]


def results_document(found: Found, **stated: Any) -> dict[str, Any]:
    """``results.json``.

    Args:
        found: every task's results.
        stated: what else is said of the evaluation: digests, engine, settings, overlap.
    """
    every = [(task, name, measured) for task, parts in found for name, measured in parts.items()]
    return {
        "schema_version": SCHEMA_VERSION,
        "tasks": {
            name: {
                "metrics": dict(sorted(measured.aggregates.items())),
                "rows": len(measured.asked),
                "rows_of": "dataset" if task.on_dataset else "task",
                "rows_at_once": measured.rows_at_once,
                **({"made_of": dict(task.made_of)} if task.own else {}),
            }
            for task, name, measured in every
        },
        "noise": {name: asdict(measured.noise) for _, name, measured in every if measured.noise},
        **stated,
    }


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The headline metrics, flat."""
    metrics = {
        f"{task}.{metric}": value
        for task, found in results["tasks"].items()
        for metric, value in found["metrics"].items()
    }
    rows = max(found["rows"] for found in results["tasks"].values())
    return {**metrics, "rows": rows, "model_bytes": results["model_bytes"]}


def tell(results: Mapping[str, Any]) -> None:
    """The results as lines for a person who follows the run."""
    for task, found in results["tasks"].items():
        shown = " · ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
        say(STEP, f"{task}: {shown} ({found['rows']} rows)")
    for task, noise in results["noise"].items():
        moved = ", ".join(f"{metric} by up to {change:.2g}" for metric, change in noise["largest_change"].items())
        told = f"{noise['answers_changed']} of {noise['rows']} answers change, {moved}"
        say(STEP, f"{task}, noise floor: with other batches {told}")
    for task, counts in (results["overlap"] or {}).items():
        say(STEP, f"{task}: {counts['exact']} rows exactly and {counts['near']} nearly among the train rows")
