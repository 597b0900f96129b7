"""Whether the evaluations are of the models that would be promoted, on the same rows, untouched by training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, evaluation_rows_digest
from tunegate.contracts.verdict import Check
from tunegate.gate.policy import ROLES, OverlapLimits
from tunegate.gate.report import short
from tunegate.gate.rows import Rows, read_rows
from tunegate.gate.task_overlap import check_task_overlap
from tunegate.models.companions import COMPANION_FILES, COMPANIONS, companion_differences
from tunegate.models.files import TOKENIZER_FILES

RESULTS_NAME = "results.json"
PROFILE_NAME = "profile.json"

#: What of an evaluation's settings and engine may differ between models of different size.
_FREE = {"batch_size"}

#: Which artifact must have been made from which.
_DESCENT = (("adapter", "dataset"), ("merged", "adapter"), ("quantized", "merged"), ("quantized", "dataset"))


@dataclass(frozen=True)
class Evaluation:
    """One model's evaluation as far as it could be read.

    Attributes:
        role: base, merged or quantized.
        results: ``results.json``; empty when it could not be read.
        rows: its rows; None when they could not be read.
        problem: why something could not be read; empty when all was.
    """

    role: str
    results: Mapping[str, Any]
    rows: Rows | None
    problem: str = ""


def read_evaluation(role: str, folder: Path) -> Evaluation:
    """Reads an evaluation; what cannot be read is said in ``problem``: it fails the gate rather than stops it."""
    results: Mapping[str, Any] = {}
    try:
        results = _object(folder / RESULTS_NAME)
        return Evaluation(role, results, read_rows(folder))
    except ArtifactError as error:
        return Evaluation(role, results, None, f"{error.failed} Seen: {error.seen}.")


def check_evidence(
    evaluations: Mapping[str, Evaluation],
    *,
    artifacts: Mapping[str, Manifest],
    profile: Path,
    training: Path,
    limits: OverlapLimits,
) -> list[Check]:
    """Judges what the comparisons rest on.

    Args:
        evaluations: by role.
        artifacts: ``dataset``, ``adapter``, ``merged``, ``quantized``: their verified manifests.
        profile: the data set's ``profile.json``.
        training: the adapter's ``training.json``.
        limits: how many rows may be on both sides.
    """
    return [
        _judged("evaluations are complete", lambda: _complete(evaluations)),
        _judged("evaluations are of these models", lambda: _models(evaluations, artifacts)),
        _judged("evaluations are on the same rows", lambda: _same_rows(evaluations, artifacts["dataset"])),
        _judged("evaluations were made the same way", lambda: _same_way(evaluations)),
        _judged("models descend from each other", lambda: _lineage(artifacts)),
        _judged(
            "tokenizer and template are the same from the base to the quantized model",
            lambda: _companions(training, artifacts),
        ),
        _overlap(profile, limits),
        *check_task_overlap({role: found.results for role, found in evaluations.items()}, limits),
    ]


def _judged(rule: str, problems: Callable[[], list[str]]) -> Check:
    found = problems()
    return Check(rule, "FAIL" if found else "PASS", "; ".join(found) or "yes")


def _complete(evaluations: Mapping[str, Evaluation]) -> list[str]:
    problems = [f"no evaluation of the {role} model" for role in ROLES if role not in evaluations]
    return problems + [f"{e.role}: {e.problem}" for e in evaluations.values() if e.problem]


def _models(evaluations: Mapping[str, Evaluation], artifacts: Mapping[str, Manifest]) -> list[str]:
    problems = []
    for role in ("merged", "quantized"):
        if role not in evaluations:
            continue
        seen, wanted = evaluations[role].results.get("model_digest"), artifacts[role].content_digest
        if seen != wanted:
            problems.append(f"the evaluation called {role} is of model {short(seen)}, not of {short(wanted)}")
    base = evaluations["base"].results.get("model_digest") if "base" in evaluations else None
    if "base" in evaluations and base not in artifacts["merged"].parents.values():
        problems.append(f"the evaluation called base is of model {short(base)}, into which nothing was merged")
    return problems


def _same_rows(evaluations: Mapping[str, Evaluation], dataset: Manifest) -> list[str]:
    problems = []
    for evaluation in evaluations.values():
        seen, wanted = evaluation.results.get("evaluation_rows_digest"), evaluation_rows_digest(dataset)
        if seen != wanted:
            problems.append(f"{evaluation.role} was evaluated on rows {short(seen)}, not on {short(wanted)}")
    digests = {e.role: e.results.get("rows_digest") for e in evaluations.values()}
    problems += [f"{role} does not say on which rows it was evaluated" for role, rows in digests.items() if not rows]
    if len(set(digests.values())) > 1:
        problems.append("rows differ: " + ", ".join(f"{role} {short(digest)}" for role, digest in digests.items()))
    return problems


def _same_way(evaluations: Mapping[str, Evaluation]) -> list[str]:
    return [problem for part in ("settings", "engine") for problem in _differences(evaluations, part)]


def _differences(evaluations: Mapping[str, Evaluation], part: str) -> list[str]:
    """How the roles differ in one mapping of their results, which each must state."""
    stated = {e.role: e.results.get(part) for e in evaluations.values()}
    known = {role: found for role, found in stated.items() if isinstance(found, Mapping) and found}
    problems = [f"{role} does not say with which {part}" for role in stated if role not in known]
    for name in sorted({name for found in known.values() for name in found} - _FREE):
        values = {role: found.get(name) for role, found in known.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            problems.append(f"{part}.{name} differs: " + ", ".join(f"{role} {value}" for role, value in values.items()))
    return problems


def _lineage(artifacts: Mapping[str, Manifest]) -> list[str]:
    return [
        f"{child} was not made from this {parent}"
        for child, parent in _DESCENT
        if artifacts[parent].content_digest not in artifacts[child].parents.values()
    ]


def _companions(training: Path, artifacts: Mapping[str, Manifest]) -> list[str]:
    """The base's are those that train names; an adapter has the tokenizer and no generation settings."""
    try:
        stated = _object(training).get(COMPANIONS)
    except ArtifactError as error:
        return [f"{error.failed} Seen: {error.seen}."]
    if not isinstance(stated, Mapping) or not stated:
        return ["the adapter does not say with which tokenizer and template it was trained"]
    problems = []
    for role, names in (("adapter", TOKENIZER_FILES), ("merged", COMPANION_FILES), ("quantized", COMPANION_FILES)):
        found = {entry.path: entry.sha256 for entry in artifacts[role].files if entry.path in names}
        expected = {name: digest for name, digest in stated.items() if role != "adapter" or name in names}
        problems += [f"{role}: {line}" for line in companion_differences(found, expected)]
    return problems


def _overlap(profile: Path, limits: OverlapLimits) -> Check:
    rule = f"train and evaluation rows do not overlap (exact {limits.exact}, near {limits.near} allowed)"
    try:
        overlap = _object(profile).get("overlap")
    except ArtifactError as error:
        return Check(rule, "FAIL", f"{error.failed} Seen: {error.seen}.")
    counts = {kind: overlap.get(kind) if isinstance(overlap, Mapping) else None for kind in ("exact", "near")}
    unknown = [kind for kind, count in counts.items() if isinstance(count, bool) or not isinstance(count, int)]
    if unknown:
        return Check(rule, "FAIL", f"the data set's profile counts no {' and no '.join(unknown)} overlap")
    above = [kind for kind, count in counts.items() if count is not None and count > getattr(limits, kind)]
    return Check(
        rule,
        "FAIL" if above else "PASS",
        f"{counts['exact']} exact and {counts['near']} near",
    )


def _object(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        document = error
    if isinstance(document, dict):
        return document
    raise ArtifactError(
        f"{path.name} cannot be read.",
        seen=f"{type(document).__name__}" + (f": {document}" if isinstance(document, Exception) else ""),
        expected="a JSON object",
        remedy="make the artifact again",
    )
