"""From KFP's arguments to :func:`tunegate.prepare.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.models.files import resolve_model
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    dataset: str,
    base_model: str,
    prepared: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``prepared.path``."""
    parsed = parse_settings(PrepareSettings, settings, where="recipe.prepare")
    manifest = run(parsed, dataset=dataset, base_model=resolve_model(base_model), output=Path(prepared.path))
    publish(manifest, artifact=prepared, page=page, metrics=metrics)
