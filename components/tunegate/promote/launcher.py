"""From KFP's arguments to :func:`tunegate.promote.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.promote.settings import PromoteSettings
from tunegate.promote.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    registry: str,
    verdict: KfpArtifact,
    adapter: KfpArtifact,
    merged: KfpArtifact,
    quantized: KfpArtifact,
    parity: KfpArtifact,
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
        evaluations={role: Path(evaluation.path) for role, evaluation in evaluations.items()},
        registry=registry,
        output=Path(promotion.path),
    )
    publish(manifest, artifact=promotion, page=page, metrics=metrics)
