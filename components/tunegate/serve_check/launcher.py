"""From KFP's arguments to :func:`tunegate.serve_check.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.serve_check.settings import ServeCheckSettings
from tunegate.serve_check.step import run
from tunegate.serving.flags import ServingFlags


@reports_errors
def launch(
    settings: Mapping[str, Any],
    serving: Mapping[str, Any],
    *,
    model: KfpArtifact,
    dataset: KfpArtifact,
    evaluation: KfpArtifact,
    report: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``report.path``."""
    manifest = run(
        parse_settings(ServeCheckSettings, settings, where="recipe.serve_check"),
        parse_settings(ServingFlags, serving, where="recipe.serving"),
        model=Path(model.path),
        dataset=Path(dataset.path),
        evaluation=Path(evaluation.path),
        output=Path(report.path),
    )
    publish(manifest, artifact=report, page=page, metrics=metrics)
