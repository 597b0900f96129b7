"""From KFP's arguments to :func:`tunegate.gate.step.run`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.contracts.verdict import read_verdict
from tunegate.gate.settings import GateSettings
from tunegate.gate.step import run


@reports_errors
def launch(
    settings: Mapping[str, Any],
    *,
    registry: str,
    dataset: KfpArtifact,
    adapter: KfpArtifact,
    merged: KfpArtifact,
    quantized: KfpArtifact,
    parity: KfpArtifact,
    champion: KfpArtifact,
    serving: KfpArtifact,
    evaluations: Mapping[str, KfpArtifact],
    verdict: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
    decision: str,
) -> None:
    """Runs the step at ``verdict.path``, and writes the decision to the file that KFP reads the output from."""
    output = Path(verdict.path)
    manifest = run(
        parse_settings(GateSettings, settings, where="recipe.gate"),
        dataset=Path(dataset.path),
        evaluations={role: Path(evaluation.path) for role, evaluation in evaluations.items()},
        adapter=Path(adapter.path),
        merged=Path(merged.path),
        quantized=Path(quantized.path),
        parity=Path(parity.path),
        champion=Path(champion.path),
        serving=Path(serving.path),
        output=output,
        registry=registry,
    )
    publish(manifest, artifact=verdict, page=page, metrics=metrics)
    Path(decision).write_text(read_verdict(output).decision, "utf-8")
