"""From KFP's arguments to :func:`tunegate.merge.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.files import resolve_model


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    base_model: str,
    adapter: KfpArtifact,
    dataset: KfpArtifact,
    merged: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``merged.path``."""
    parsed = parse_settings(MergeSettings, settings, where="recipe.merge")
    base = resolve_model(base_model)
    manifest = run(
        parsed,
        base_model=base,
        adapter=Path(adapter.path),
        dataset=Path(dataset.path),
        output=Path(merged.path),
    )
    publish(manifest, artifact=merged, page=page, metrics=metrics)
