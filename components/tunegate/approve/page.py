"""The pages of approval: what is asked and how to answer, and what was answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.approval import Decision, Request
from tunegate.contracts.verdict import Verdict
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, code, facts, paragraph, table

_SAID = {"approve": "approved", "reject": "rejected", "expire": "expired"}


@dataclass(frozen=True)
class Asked:
    """A request with what a person wants to see before answering it.

    Attributes:
        request: what is asked.
        registry: where it lies.
        verdict: what the gate said.
        evaluations: role → its evaluation artifact.
        signed: whether the version is signed.
    """

    request: Request
    registry: str
    verdict: Verdict
    evaluations: Mapping[str, Path]
    signed: bool


def request_page(asked: Asked) -> str:
    """What is asked, what the gate found, who may answer and how."""
    request, verdict = asked.request, asked.verdict
    what = {
        "alias": request.alias,
        "would move to": request.version[:12],
        "points at now": (request.current or "nothing")[:12],
        "asked by": request.requester.name,
        "answer before": request.expires,
        "promote before": request.use_before,
        "signature": "signed" if asked.signed else "unsigned",
    }
    checks = [(check.decision, check.rule, check.reason) for check in verdict.checks]
    sections = [
        Section("What is asked", facts(what)),
        Section("How to answer", _how(asked), "A decision is written once and never changed."),
        Section("Who may answer", _who(request)),
        Section("What the gate found", badge(verdict.decision) + paragraph(verdict.summary)),
        *_measures(asked.evaluations),
        Section("Checks", table(("decision", "check", "why"), checks)),
        Section("What the approval is bound to", _bound(request), _BOUND_NOTE),
    ]
    return page(f"Approve {request.alias}?", sections, subtitle=asked.registry)


def decision_page(request: Request, decision: Decision, registry: str) -> str:
    """What was answered, by whom and why."""
    said = _SAID[decision.decision]
    told = {
        "alias": request.alias,
        "version": request.version[:12],
        "asked by": request.requester.name,
        "decided by": decision.approver.name,
        "known by": decision.approver.method,
        "at": decision.decided,
    }
    sections = [
        Section("Decision", badge(said) + paragraph(decision.reason) + facts(told)),
        Section("What the approval is bound to", _bound(request), _BOUND_NOTE),
    ]
    return page(f"{request.alias}: {said}", sections, subtitle=registry)


_BOUND_NOTE = "An approval does not count when any of these is another one by then, or the alias was moved."


def _how(asked: Asked) -> str:
    request = asked.request
    options = f'{request.digest} \\\n  --registry {asked.registry} --reason "why"'
    parameters = [
        ("request", request.digest),
        ("decision", "approve, or reject"),
        ("reason", "why"),
        ("registry", asked.registry),
    ]
    return (
        paragraph("In KFP: run the pipeline 'approve' with these parameters.")
        + table(("parameter", "value"), parameters)
        + paragraph("On a command line:")
        + code(f"tunegate approve {options}\n\ntunegate reject {options}")
    )


def _who(request: Request) -> str:
    rules = request.rules
    known = {
        "oidc": f"an ID token of {rules.issuer} for {rules.audience}, in ${rules.token_env or rules.token_file}",
        "kubernetes": "the token of a service account, for which the cluster vouches",
    }.get(rules.identity, "the user of the machine on which the registry's folder lies")
    if rules.allow_unauthenticated:
        known += "; or by nothing: this request allows an unauthenticated answer"
    requester = "may approve" if rules.allow_requester else "may not approve"
    anybody = "anybody" if rules.allow_requester else "anybody else"
    issuer = [("issuer", rules.issuer), ("its keys", rules.jwks or "as the issuer itself says")]
    held = "the registry's own, which whoever asked could not loosen"
    rows = [
        ("who", ", ".join(rules.approvers) or anybody),
        ("known by", known),
        *(issuer if rules.identity == "oidc" else []),
        ("rules", held if request.minimum else "chosen by whoever asked: this registry has none of its own"),
        ("who asked", f"{request.requester.name}: {requester}, and may take it back"),
    ]
    return table(("", ""), rows)


def _measures(evaluations: Mapping[str, Path]) -> list[Section]:
    """The means of every task, model by model."""
    results = {role: json.loads((folder / "results.json").read_text("utf-8")) for role, folder in evaluations.items()}
    columns = list(
        dict.fromkeys(
            (task, metric)
            for found in results.values()
            for task, measured in found["tasks"].items()
            for metric in measured["metrics"]
        )
    )
    rows = [
        (role, *(found["tasks"].get(task, {}).get("metrics", {}).get(metric, "–") for task, metric in columns))
        for role, found in results.items()
    ]
    head = ("model", *(" ".join(column) for column in columns))
    return [Section("What was measured", table(head, rows))] if columns else []


def _bound(request: Request) -> str:
    rows = [
        ("request", request.digest),
        ("version", request.version),
        ("policy", request.policy_digest),
        ("alias", f"{request.alias}, generation {request.generation}"),
        *sorted(request.parts.items()),
    ]
    return table(("what", "digest"), rows)
