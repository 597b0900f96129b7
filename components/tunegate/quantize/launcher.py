"""From KFP's arguments to :func:`tunegate.quantize.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    model: KfpArtifact,
    dataset: KfpArtifact,
    quantized: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``quantized.path``."""
    parsed = parse_settings(QuantizeSettings, settings, where="recipe.quantize")
    manifest = run(parsed, model=Path(model.path), dataset=Path(dataset.path), output=Path(quantized.path))
    publish(manifest, artifact=quantized, page=page, metrics=metrics)
