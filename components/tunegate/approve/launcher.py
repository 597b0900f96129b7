"""From KFP's arguments to the steps of approval, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.approve import decide, request, wait
from tunegate.approve.identity import identify
from tunegate.approve.page import decision_page
from tunegate.approve.settings import ApproveSettings, rules_of
from tunegate.contracts.claim import parse_claim
from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish, read_summary
from tunegate.contracts.progress import say
from tunegate.contracts.settings import parse_settings
from tunegate.registry.settings import SigningSettings


@reports_errors
def launch_request(
    settings: Mapping[str, Any],
    signing: Mapping[str, Any],
    *,
    alias: str,
    registry: str,
    verdict: KfpArtifact,
    adapter: KfpArtifact,
    merged: KfpArtifact,
    quantized: KfpArtifact,
    parity: KfpArtifact,
    champion: KfpArtifact,
    serving: KfpArtifact,
    evaluations: Mapping[str, KfpArtifact],
    asked: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
    request_digest: str,
    claim: Mapping[str, Any],
) -> None:
    """Asks, and writes the request's digest to the file that KFP reads the output from."""
    parsed = parse_settings(ApproveSettings, settings, where="recipe.approve")
    signed = parse_settings(SigningSettings, signing, where="recipe.signing")
    rules = rules_of(parsed, require_signature=signed.require_signature)
    requester = identify(rules, registry=registry, environment=os.environ)
    manifest = request.run(
        request.Asking(alias, requester, parsed, signed, os.environ, parse_claim(claim)),
        verdict=Path(verdict.path),
        adapter=Path(adapter.path),
        merged=Path(merged.path),
        quantized=Path(quantized.path),
        parity=Path(parity.path),
        champion=Path(champion.path),
        serving=Path(serving.path),
        evaluations={role: Path(evaluation.path) for role, evaluation in evaluations.items()},
        registry=registry,
        output=Path(asked.path),
    )
    publish(manifest, artifact=asked, page=page, metrics=metrics)
    Path(request_digest).write_text(str(read_summary(Path(asked.path))["request"]), "utf-8")


@reports_errors
def launch_wait(
    settings: Mapping[str, Any],
    *,
    registry: str,
    request: str,
    answer: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
    decision: str,
) -> None:
    """Waits, and writes what was answered to the file that KFP reads the output from."""
    parsed = parse_settings(ApproveSettings, settings, where="recipe.approve")
    manifest, answered = wait.run(
        request,
        registry=registry,
        poll_seconds=parsed.poll_seconds,
        environment=os.environ,
        output=Path(answer.path),
    )
    publish(manifest, artifact=answer, page=page, metrics=metrics)
    Path(decision).write_text(answered.decision, "utf-8")


@reports_errors
def launch_not_approved(answer: KfpArtifact) -> None:
    """Raises who said no and why, as it was written when the waiting ended."""
    raise wait.read_denial(Path(answer.path))


@reports_errors
def launch_decide(request: str, decision: str, *, reason: str, registry: str, page: KfpArtifact) -> None:
    """Answers a request as the identity of this pod."""
    asked, answered = decide.run(request, decision, reason=reason, registry=registry, environment=os.environ)
    say("approve", f"{answered.decision} by {answered.approver.name}")
    Path(page.path).parent.mkdir(parents=True, exist_ok=True)
    Path(page.path).write_text(decision_page(asked, answered, registry), "utf-8")
