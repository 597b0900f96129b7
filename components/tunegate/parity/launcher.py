"""From KFP's arguments to :func:`tunegate.parity.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.models.files import resolve_model
from tunegate.parity.settings import ParitySettings
from tunegate.parity.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    base_model: str,
    adapter: KfpArtifact,
    merged: KfpArtifact,
    quantized: KfpArtifact,
    dataset: KfpArtifact,
    report: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``report.path``."""
    manifest = run(
        parse_settings(ParitySettings, settings, where="recipe.parity"),
        base_model=resolve_model(base_model),
        adapter=Path(adapter.path),
        merged=Path(merged.path),
        quantized=Path(quantized.path),
        dataset=Path(dataset.path),
        output=Path(report.path),
    )
    publish(manifest, artifact=report, page=page, metrics=metrics)
