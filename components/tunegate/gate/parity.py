"""The parity report against the policy's limits. What is missing, foreign or no number is a FAIL, never a pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, validation_rows_digest
from tunegate.contracts.verdict import Check
from tunegate.gate.policy import PARITY_LIMITS, ParityRule
from tunegate.gate.report import Report, about_others, is_count, number, read_report, short

PARITY_NAME = "parity.json"

#: Which digests of the report must be those of which judged artifacts.
_SUBJECTS = ("adapter", "merged", "quantized")


#: What a divergence of 0 may be off by.
_ROUNDING = 1e-9


def read_parity(folder: Path, manifest: Manifest) -> Report:
    """Reads a parity report; see :func:`~tunegate.gate.report.read_report`."""
    return read_report(folder, manifest, name=PARITY_NAME)


def check_parity(
    rules: Sequence[ParityRule], report: Report | None, *, artifacts: Mapping[str, Manifest]
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


def _foreign(report: Report, artifacts: Mapping[str, Manifest]) -> list[str]:
    """In what a report is about something else, by its own word and by its manifest's."""
    if report.problem:
        return [report.problem]
    wanted: dict[str, str | None] = {name: artifacts[name].content_digest for name in _SUBJECTS}
    try:
        wanted["validation_rows"] = validation_rows_digest(artifacts["dataset"])
    except ArtifactError as error:
        return [error.failed]
    problems = about_others(report, wanted)
    problems += [
        f"its {where} is about base {short(digests.get('base'))}, into which nothing was merged"
        for where, digests in report.told.items()
        if digests.get("base") not in artifacts["merged"].parents.values()
    ]
    counts = {name: report.document.get(name) for name in ("rows", "tokens")}
    return problems + [f"it counts no {name}" for name, count in counts.items() if not is_count(count)]


def _limit(rule: ParityRule, name: str, limit: float, document: Mapping[str, Any]) -> Check:
    """One limit against the figure that was measured."""
    figure = PARITY_LIMITS[name]
    told = f"parity: {rule.pair} ({name.replace('_', ' ')} {limit:g})"
    pairs = document.get("pairs")
    pair = pairs.get(rule.pair) if isinstance(pairs, Mapping) else None
    value = _figure(pair, figure)
    if value is None or not isinstance(pair, Mapping):
        return Check(told, "FAIL", f"the report has no {figure.replace('_', ' ')} of {rule.pair}", threshold=limit)
    holds = value >= limit if name.startswith("min_") else value <= limit
    noise = _figure(document.get("noise_floor"), figure)
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


def _figure(figures: object, name: str) -> float | None:
    """A figure of the report; an agreement is a share."""
    highest = 1.0 if name == PARITY_LIMITS["min_top1_agreement"] else sys.float_info.max
    return number(figures, name, lowest=-_ROUNDING, highest=highest)


def _rows(tokens: object) -> tuple[str, ...]:
    """The rows of the tokens that differ most, each once."""
    found = [token.get("row_id") for token in tokens if isinstance(token, Mapping)] if isinstance(tokens, list) else []
    return tuple(dict.fromkeys(row for row in found if isinstance(row, str)))
