"""From KFP's arguments to :func:`tunegate.train.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.models.files import resolve_model
from tunegate.train.settings import TrainSettings
from tunegate.train.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    base_model: str,
    checkpoint_uri: str,
    dataset: KfpArtifact,
    adapter: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``adapter.path``."""
    parsed = parse_settings(TrainSettings, settings, where="recipe.train")
    base, rows = resolve_model(base_model), Path(dataset.path)
    manifest = run(
        parsed,
        base_model=base,
        dataset=rows,
        output=Path(adapter.path),
        checkpoint_uri=checkpoint_uri,
        keep_last="://" in getattr(adapter, "uri", ""),  # KFP uploads the artifact when this process has ended
    )
    publish(manifest, artifact=adapter, page=page, metrics=metrics)
