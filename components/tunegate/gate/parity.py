"""The parity report against the policy's limits. What is missing, foreign or no number is a FAIL, never a pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, validation_rows_digest
from tunegate.contracts.verdict import Check
from tunegate.gate.policy import PARITY_LIMITS, ParityRule

PARITY_NAME = "parity.json"
SCHEMA_VERSION = 1

#: Which digests of the report must be those of which judged artifacts.
_SUBJECTS = ("adapter", "merged", "quantized")


#: What a divergence of 0 may be off by.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ParityReport:
    """A parity report as far as it could be read.

    Attributes:
        document: ``parity.json``; empty when it could not be read.
        manifest: of the artifact that holds it, verified.
        problem: why it could not be read; empty when it was.
    """

    document: Mapping[str, Any]
    manifest: Manifest
    problem: str = ""


def read_parity(folder: Path, manifest: Manifest) -> ParityReport:
    """Reads a parity report; what cannot be read is said in ``problem``: it fails the gate rather than stops it."""
    try:
        document = json.loads((folder / PARITY_NAME).read_text("utf-8"))
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"no report of schema version {SCHEMA_VERSION}")
    except (OSError, ValueError) as error:
        return ParityReport({}, manifest, f"{PARITY_NAME} cannot be read: {error}")
    return ParityReport(document, manifest)


def check_parity(
    rules: Sequence[ParityRule], report: ParityReport | None, *, artifacts: Mapping[str, Manifest]
) -> list[Check]:
    """Judges how far merging and quantizing moved the model.

    Args:
        rules: the policy's limits. Without any, a report that is there must still be of these artifacts.
        report: the report; None when there is none.
        artifacts: ``dataset``, ``adapter``, ``merged``, ``quantized``: their verified manifests.
    """
    if report is None and not rules:
        return []
    problems = ["there is no parity report"] if report is None else _foreign(report, artifacts)
    checks = [Check("parity is of these models", "FAIL" if problems else "PASS", "; ".join(problems) or "yes")]
    document = report.document if report is not None and not problems else {}
    return checks + [_limit(rule, name, value, document) for rule in rules for name, value in rule.limits.items()]


def _foreign(report: ParityReport, artifacts: Mapping[str, Manifest]) -> list[str]:
    """In what a report is about something else, by its own word and by its manifest's."""
    if report.problem:
        return [report.problem]
    wanted = {name: artifacts[name].content_digest for name in _SUBJECTS}
    try:
        wanted["validation_rows"] = validation_rows_digest(artifacts["dataset"])
    except ArtifactError as error:
        return [error.failed]
    stated = report.document.get("digests")
    told = {"report": stated if isinstance(stated, Mapping) else {}, "manifest": report.manifest.parents}
    problems = [
        f"its {where} is about {name} {_short(digests.get(name))}, not {_short(digest)}"
        for where, digests in told.items()
        for name, digest in wanted.items()
        if digests.get(name) != digest
    ]
    problems += [
        f"its {where} is about base {_short(digests.get('base'))}, into which nothing was merged"
        for where, digests in told.items()
        if digests.get("base") not in artifacts["merged"].parents.values()
    ]
    counts = {name: report.document.get(name) for name in ("rows", "tokens")}
    return problems + [f"it counts no {name}" for name, count in counts.items() if not _positive(count)]


def _limit(rule: ParityRule, name: str, limit: float, document: Mapping[str, Any]) -> Check:
    """One limit against the figure that was measured."""
    figure = PARITY_LIMITS[name]
    told = f"parity: {rule.pair} ({name.replace('_', ' ')} {limit:g})"
    pairs = document.get("pairs")
    pair = pairs.get(rule.pair) if isinstance(pairs, Mapping) else None
    value = _number(pair, figure)
    if value is None or not isinstance(pair, Mapping):
        return Check(told, "FAIL", f"the report has no {figure.replace('_', ' ')} of {rule.pair}", threshold=limit)
    holds = value >= limit if name.startswith("min_") else value <= limit
    noise = _number(document.get("noise_floor"), figure)
    reason = f"{value:.4g} on {document['tokens']} tokens of {document['rows']} rows"
    reason += f"; the noise floor is {noise:.4g}" if noise is not None else ""
    if not holds and isinstance(layer := pair.get("worst_layer"), str):
        reason += f"; the error grows most in {layer}"
    return Check(
        told,
        "PASS" if holds else "FAIL",
        reason,
        estimate=value,
        threshold=limit,
        rows=() if holds else _rows(pair.get("worst_tokens")),
    )


def _number(figures: object, name: str) -> float | None:
    """A figure; None when it is no finite number, or one that cannot be."""
    value = figures.get(name) if isinstance(figures, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    highest = 1.0 if name == PARITY_LIMITS["min_top1_agreement"] else sys.float_info.max
    return float(value) if -_ROUNDING <= value <= highest else None


def _rows(tokens: object) -> tuple[str, ...]:
    """The rows of the tokens that differ most, each once."""
    found = [token.get("row_id") for token in tokens if isinstance(token, Mapping)] if isinstance(tokens, list) else []
    return tuple(dict.fromkeys(row for row in found if isinstance(row, str)))


def _positive(count: object) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and count > 0


def _short(digest: object) -> str:
    return digest[:12] if isinstance(digest, str) and digest else "unknown"
