"""The report of what served against the policy. Not checked, missing, foreign or no number is never a pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest, validation_rows_digest
from tunegate.contracts.settings import setting
from tunegate.contracts.verdict import Check
from tunegate.gate.report import Report, about_others, is_count, number, read_report, short
from tunegate.serving.limits import AnswerLimits, Figures, Held, at_least, held

SERVING_NAME = "serving.json"


@dataclass(frozen=True)
class ServingRule(AnswerLimits):
    """The policy's section ``serving``: how closely what serves must answer as what was evaluated."""

    required: bool = setting(True, help="whether a run that was not served and checked is refused")
    min_same_answers: float | None = setting(
        None, help="share of the evaluation's answers that the server repeats word for word", minimum=0, maximum=1
    )
    max_score_loss: float | None = setting(
        None, help="how far the mean score of the served answers may lie below that of the evaluated ones, on the same "
        "rows and by each metric of their task", minimum=0,
    )  # fmt: skip


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
    logprobs, noise = document.get("logprobs"), document.get("noise")
    figures = Figures(
        agreement=number(document, "agreement", highest=1.0),
        mean_difference=number(logprobs, "mean"),
        max_difference=number(logprobs, "max"),
        mean_noise=number(noise, "mean"),
    )
    same = at_least("min same answers", rule.min_same_answers, number(document, "same_answers", highest=1.0))
    differs = _rows(document, lambda row: row.get("outcome") == "differs")
    checks = [*held(rule, figures), *([same] if same else []), *_losses(rule, document.get("scores"))]
    return [_limit(check, differs) for check in checks]


def _losses(rule: ServingRule, scores: object) -> list[Held]:
    """What the served answers are worth less than the evaluated ones, by each metric; no score is no pass."""
    if rule.max_score_loss is None:
        return []
    found = scores if isinstance(scores, Mapping) and scores else {"": None}
    return [
        Held(
            f"max score loss {metric}".rstrip(),
            rule.max_score_loss,
            loss,
            loss is not None and loss <= rule.max_score_loss,
        )
        for metric, means in found.items()
        for loss in [_loss(means)]
    ]


def _loss(means: object) -> float | None:
    served, evaluated = (number(means, side, lowest=-sys.float_info.max) for side in ("served", "evaluated"))
    return None if served is None or evaluated is None else evaluated - served


def _limit(held: Held, differs: tuple[str, ...]) -> Check:
    rows = differs if held.name == "min agreement" and not held.holds else ()
    return Check(
        f"serving: {held.name} {held.limit:g}", "PASS" if held.holds else "FAIL", held.told, estimate=held.value,
        threshold=held.limit, rows=rows,
    )  # fmt: skip


def _rows(document: Mapping[str, Any], concerns: Any) -> tuple[str, ...]:
    """The rows that a check is about, each once."""
    apart = document.get("apart")
    found = [row for row in apart if isinstance(row, Mapping)] if isinstance(apart, list) else []
    return tuple(dict.fromkeys(str(row.get("row_id")) for row in found if concerns(row)))
