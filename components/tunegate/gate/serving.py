"""The report of what served against the policy. Not checked, missing, foreign or no number is never a pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, validation_rows_digest
from tunegate.contracts.settings import setting
from tunegate.contracts.verdict import Check

SERVING_NAME = "serving.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ServingRule:
    """The policy's section ``serving``: how closely what serves must answer as what was evaluated."""

    required: bool = setting(True, help="whether a run that was not served and checked is refused")
    min_agreement: float = setting(
        1.0, help="share of rows that are answered the same, up to a tie within rounding", minimum=0, maximum=1
    )
    max_mean_logprob_difference: float | None = setting(
        None, help="mean difference of the log-probabilities", unit="nats a token", exclusive_minimum=0
    )
    max_logprob_difference: float | None = setting(
        None, help="difference of the token that differs most", unit="nats", exclusive_minimum=0
    )
    max_times_noise: float | None = setting(
        3.0,
        help="mean difference of the log-probabilities, as a multiple of what rounding alone makes; engines that "
        "compute rightly were measured at 1.1 to 1.8",
        exclusive_minimum=0,
    )
    min_same_answers: float | None = setting(
        None, help="share of the evaluation's answers that the server repeats word for word", minimum=0, maximum=1
    )


#: What a report is held against where the policy says nothing of serving: what was checked must hold.
UNSTATED = ServingRule(required=False)


@dataclass(frozen=True)
class ServingReport:
    """A report as far as it could be read.

    Attributes:
        document: ``serving.json``; empty when it could not be read.
        manifest: of the artifact that holds it, verified.
        problem: why it could not be read; empty when it was.
    """

    document: Mapping[str, Any]
    manifest: Manifest
    problem: str = ""


def read_serving(folder: Path, manifest: Manifest) -> ServingReport:
    """Reads a report; what cannot be read is said in ``problem``: it fails the gate rather than stops it."""
    try:
        document = json.loads((folder / SERVING_NAME).read_text("utf-8"))
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"no report of schema version {SCHEMA_VERSION}")
    except (OSError, ValueError) as error:
        return ServingReport({}, manifest, f"{SERVING_NAME} cannot be read: {error}")
    return ServingReport(document, manifest)


def check_serving(
    rule: ServingRule | None,
    report: ServingReport | None,
    *,
    artifacts: Mapping[str, Manifest],
    evaluation: str | None,
) -> list[Check]:
    """Judges whether what serves answers as what was evaluated.

    Args:
        rule: the policy's section; None when it has none: a report that is there must hold all the same.
        report: the report; None when there is none.
        artifacts: ``dataset`` and ``quantized`` among them: their verified manifests.
        evaluation: the content digest of the quantized model's evaluation; None when there is none.
    """
    if rule is None and report is None:
        return []
    asked = rule or UNSTATED
    if report is None:
        return [_check("what serves was checked", ["there is no serving report"] if asked.required else [])]
    foreign = _check("serving report is of this model", _foreign(report, artifacts, evaluation))
    if foreign.decision == "FAIL" or report.document.get("checked") is not True:
        unchecked = [] if foreign.decision == "PASS" and not asked.required else [_unchecked(report)]
        return [foreign, _check("what serves was checked", unchecked, otherwise=_unchecked(report))]
    return [foreign, _check("what serves was checked", []), *_facts(report), *_limits(asked, report.document)]


def _check(rule: str, problems: list[str], *, otherwise: str = "yes") -> Check:
    return Check(rule, "FAIL" if problems else "PASS", "; ".join(problems) or otherwise)


def _unchecked(report: ServingReport) -> str:
    reason = report.document.get("reason")
    return f"not checked: {reason}" if isinstance(reason, str) else "not checked"


def _foreign(report: ServingReport, artifacts: Mapping[str, Manifest], evaluation: str | None) -> list[str]:
    """In what a report is about something else, by its own word and by its manifest's."""
    if report.problem:
        return [report.problem]
    try:
        rows = validation_rows_digest(artifacts["dataset"])
    except ArtifactError as error:
        return [error.failed]
    wanted = {"model": artifacts["quantized"].content_digest, "validation_rows": rows, "evaluation": evaluation}
    stated = report.document.get("digests")
    told = {"report": stated if isinstance(stated, Mapping) else {}, "manifest": report.manifest.parents}
    return [
        f"its {place} is about {name} {_short(digests.get(name))}, not {_short(digest)}"
        for place, digests in told.items()
        for name, digest in wanted.items()
        if digest is None or digests.get(name) != digest
    ]


def _facts(report: ServingReport) -> list[Check]:
    """What no policy can allow: another name, another prompt, another end, or nothing that could have differed."""
    document, digest = report.document, report.manifest.parents.get("model")
    named = document.get("served_name")
    counts = {name: document.get(name) for name in ("rows", "tokens", "certain_tokens")}
    none = [f"it counts no {name.replace('_', ' ')}" for name, count in counts.items() if not _positive(count)]
    return [
        _check("served under its content digest", [] if named == digest else [f"served as {_short(named)}"]),
        _check("serving was asked what could have differed", none, otherwise=_counted(document)),
        _whole("the server renders conversations as evaluation does", document, "rendered"),
        _whole("served answers end where evaluated ones do", document, "ended"),
    ]


def _counted(document: Mapping[str, Any]) -> str:
    return f"{document['certain_tokens']} of {document['tokens']} tokens of {document['rows']} rows"


def _whole(rule: str, document: Mapping[str, Any], name: str) -> Check:
    """A share that must be 1."""
    value = _number(document, name, highest=1.0)
    told = f"the report has no share {name}" if value is None else f"{value:.1%} of the rows"
    return Check(
        rule, "PASS" if value == 1 else "FAIL", told, estimate=value, threshold=1.0,
        rows=() if value == 1 else _rows(document, lambda row: row.get(name) is not True),
    )  # fmt: skip


def _limits(rule: ServingRule, document: Mapping[str, Any]) -> list[Check]:
    agreement = _number(document, "agreement", highest=1.0)
    logprobs, noise = document.get("logprobs"), document.get("noise")
    mean, floor = _number(logprobs, "mean"), _number(noise, "mean")
    times = None if mean is None or not floor else mean / floor
    differs = _rows(document, lambda row: row.get("outcome") == "differs")
    limits = [
        _least("min agreement", rule.min_agreement, agreement, rows=differs),
        _most("max mean logprob difference", rule.max_mean_logprob_difference, mean),
        _most("max logprob difference", rule.max_logprob_difference, _number(logprobs, "max")),
        _most("max times noise", rule.max_times_noise, times),
        _least("min same answers", rule.min_same_answers, _number(document, "same_answers", highest=1.0)),
    ]
    return [check for check in limits if check is not None]


def _least(name: str, limit: float | None, value: float | None, *, rows: tuple[str, ...] = ()) -> Check | None:
    return None if limit is None else _limit(name, limit, value, value is not None and value >= limit, rows)


def _most(name: str, limit: float | None, value: float | None) -> Check | None:
    return None if limit is None else _limit(name, limit, value, value is not None and value <= limit, ())


def _limit(name: str, limit: float, value: float | None, holds: bool, rows: tuple[str, ...]) -> Check:
    told = f"the report has no {name.partition(' ')[2]}" if value is None else f"{value:.4g}"
    return Check(
        f"serving: {name} {limit:g}", "PASS" if holds else "FAIL", told, estimate=value, threshold=limit,
        rows=() if holds else rows,
    )  # fmt: skip


def _rows(document: Mapping[str, Any], concerns: Any) -> tuple[str, ...]:
    """The rows that a check is about, each once."""
    apart = document.get("apart")
    found = [row for row in apart if isinstance(row, Mapping)] if isinstance(apart, list) else []
    return tuple(dict.fromkeys(str(row.get("row_id")) for row in found if concerns(row)))


def _number(figures: object, name: str, *, highest: float = sys.float_info.max) -> float | None:
    """A figure; None when it is no finite number, or one that cannot be."""
    value = figures.get(name) if isinstance(figures, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= highest else None


def _positive(count: object) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and count > 0


def _short(digest: object) -> str:
    return digest[:12] if isinstance(digest, str) and digest else "unknown"
