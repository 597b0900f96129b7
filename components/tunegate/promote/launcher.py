"""From KFP's arguments to :func:`tunegate.promote.step.run`, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.claim import parse_claim
from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.promote import approved
from tunegate.promote.settings import PromoteSettings
from tunegate.promote.step import run
from tunegate.registry.settings import SigningSettings


@reports_errors
def launch(
    settings: Mapping[str, Any],
    signing: Mapping[str, Any],
    *,
    registry: str,
    claim: Mapping[str, Any],
    verdict: KfpArtifact,
    adapter: KfpArtifact,
    merged: KfpArtifact,
    quantized: KfpArtifact,
    parity: KfpArtifact,
    champion: KfpArtifact,
    serving: KfpArtifact,
    evaluations: Mapping[str, KfpArtifact],
    promotion: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``promotion.path``."""
    manifest = run(
        parse_settings(PromoteSettings, settings, where="recipe.promote"),
        verdict=Path(verdict.path),
        adapter=Path(adapter.path),
        merged=Path(merged.path),
        quantized=Path(quantized.path),
        parity=Path(parity.path),
        champion=Path(champion.path),
        serving=Path(serving.path),
        evaluations={role: Path(evaluation.path) for role, evaluation in evaluations.items()},
        registry=registry,
        output=Path(promotion.path),
        signing=parse_settings(SigningSettings, signing, where="recipe.signing"),
        environment=os.environ,
        claim=parse_claim(claim),
    )
    publish(manifest, artifact=promotion, page=page, metrics=metrics)


@reports_errors
def launch_approved(
    signing: Mapping[str, Any],
    *,
    registry: str,
    request: str,
    promotion: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs :func:`tunegate.promote.approved.run` at ``promotion.path``."""
    manifest = approved.run(
        parse_settings(SigningSettings, signing, where="recipe.signing"),
        registry=registry,
        request=request,
        output=Path(promotion.path),
    )
    publish(manifest, artifact=promotion, page=page, metrics=metrics)
