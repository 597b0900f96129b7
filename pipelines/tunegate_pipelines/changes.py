"""What a version is made from, as a digest: by it a retraining knows whether anything changed since."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.files import sha256_json
from tunegate.contracts.manifest import input_digest
from tunegate.evaluate.own.scorer import load_scorer
from tunegate.evaluate.own.task import defined_by, is_task_file, read_definition
from tunegate_pipelines.pinned_inputs import commit_of

#: Settings in them that say where and how patiently something runs, and not what comes of it.
_OPERATIONAL: Mapping[str, frozenset[str]] = {
    "quantize": frozenset({"legacy_python"}),
    "evaluate": frozenset({"api_key_variable", "request_timeout_seconds", "patience_seconds"}),
    "serve_check": frozenset({"python", "ready_seconds", "rows_at_once"}),
}

#: Sections of a recipe that decide what a version is, or whether it passes; who approves and who signs changes none.
_DECIDING = ("prepare", "train", "merge", "quantize", "parity", "evaluate", "serve_check", "serving", "gate")


def made_by(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of a recipe: settings, the gate's policy, and the rows and scorers of its own tasks.

    A scorer that is not installed here is known by name alone: it is looked for where it runs.

    Args:
        sections: step → its settings, complete.

    Raises:
        InputError: for a task file that cannot be read.
    """
    tasks = {name: _defined(name) for name in sections["evaluate"]["tasks"] if is_task_file(name)}
    return sha256_json({"sections": {step: _deciding(step, sections[step]) for step in _DECIDING}, "tasks": tasks})


def _deciding(step: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OPERATIONAL.get(step, ())}


def _defined(address: str) -> dict[str, str]:
    file, rows = read_definition(address)
    found = defined_by(file, rows)
    if file.scorer:
        with contextlib.suppress(SettingsError):
            scorer = load_scorer(file.scorer)
            found |= {"scorer": scorer.distribution, "scorer_sha256": scorer.sha256}
    return found


def made_from(*, dataset: str, base_model: str, recipe: str) -> str:
    """The digest of everything a version is made from.

    Args:
        dataset, base_model: as in the run form: a folder is read, byte by byte; a hub's commit is what it is.
        recipe: what :func:`made_by` gives.
    """
    inputs = {"dataset": _identity(dataset), "base_model": _identity(base_model)}
    return sha256_json({**inputs, "recipe": recipe})


def _identity(address: str) -> str:
    return f"commit {address}" if commit_of(address) else input_digest(Path(address).expanduser())
