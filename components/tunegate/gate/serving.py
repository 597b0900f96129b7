"""The report of what served against the policy. Not checked, missing, foreign or no number is never a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, validation_rows_digest
from tunegate.contracts.settings import setting
from tunegate.contracts.verdict import Check
from tunegate.gate.report import Report, about_others, is_count, number, read_report, short

SERVING_NAME = "serving.json"


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


def read_serving(folder: Path, manifest: Manifest) -> Report:
    """Reads the report of serve_check; see :func:`~tunegate.gate.report.read_report`."""
    return read_report(folder, manifest, name=SERVING_NAME)


def check_serving(
    rule: ServingRule | None,
    report: Report | None,
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


def _unchecked(report: Report) -> str:
    reason = report.document.get("reason")
    return f"not checked: {reason}" if isinstance(reason, str) else "not checked"


def _foreign(report: Report, artifacts: Mapping[str, Manifest], evaluation: str | None) -> list[str]:
    """In what a report is about something else, by its own word and by its manifest's."""
    if report.problem:
        return [report.problem]
    try:
        rows = validation_rows_digest(artifacts["dataset"])
    except ArtifactError as error:
        return [error.failed]
    wanted = {"model": artifacts["quantized"].content_digest, "validation_rows": rows, "evaluation": evaluation}
    return about_others(report, wanted)


def _facts(report: Report) -> list[Check]:
    """What no policy can allow: another name, another prompt, another end, or nothing that could have differed."""
    document, digest = report.document, report.manifest.parents.get("model")
    named = document.get("served_name")
    counts = {name: document.get(name) for name in ("rows", "tokens", "certain_tokens")}
    none = [f"it counts no {name.replace('_', ' ')}" for name, count in counts.items() if not is_count(count)]
    return [
        _check("served under its content digest", [] if named == digest else [f"served as {short(named)}"]),
        _check("serving was asked what could have differed", none, otherwise=_counted(document)),
        _whole("the server renders conversations as evaluation does", document, "rendered"),
        _whole("served answers end where evaluated ones do", document, "ended"),
    ]


def _counted(document: Mapping[str, Any]) -> str:
    return f"{document['certain_tokens']} of {document['tokens']} tokens of {document['rows']} rows"


def _whole(rule: str, document: Mapping[str, Any], name: str) -> Check:
    """A share that must be 1."""
    value = number(document, name, highest=1.0)
    told = f"the report has no share {name}" if value is None else f"{value:.1%} of the rows"
    return Check(
        rule, "PASS" if value == 1 else "FAIL", told, estimate=value, threshold=1.0,
        rows=() if value == 1 else _rows(document, lambda row: row.get(name) is not True),
    )  # fmt: skip


def _limits(rule: ServingRule, document: Mapping[str, Any]) -> list[Check]:
    agreement = number(document, "agreement", highest=1.0)
    logprobs, noise = document.get("logprobs"), document.get("noise")
    mean, floor = number(logprobs, "mean"), number(noise, "mean")
    times = None if mean is None or not floor else mean / floor
    differs = _rows(document, lambda row: row.get("outcome") == "differs")
    limits = [
        _least("min agreement", rule.min_agreement, agreement, rows=differs),
        _most("max mean logprob difference", rule.max_mean_logprob_difference, mean),
        _most("max logprob difference", rule.max_logprob_difference, number(logprobs, "max")),
        _most("max times noise", rule.max_times_noise, times),
        _least("min same answers", rule.min_same_answers, number(document, "same_answers", highest=1.0)),
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
