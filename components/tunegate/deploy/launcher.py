"""From KFP's arguments to :func:`tunegate.deploy.step.run`, and back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.deploy.settings import ClusterSettings
from tunegate.deploy.step import run
from tunegate.registry.settings import SigningSettings
from tunegate.serving.flags import ServingFlags


@reports_errors
def launch(
    settings: Mapping[str, Any],
    serving: Mapping[str, Any],
    signing: Mapping[str, Any],
    *,
    registry: str,
    alias: str,
    attempt: str,
    deployment: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step at ``deployment.path``; SIGTERM ends it with no traffic on the canary."""
    manifest = run(
        parse_settings(ClusterSettings, settings, where="recipe.deploy"),
        parse_settings(ServingFlags, serving, where="recipe.serving"),
        parse_settings(SigningSettings, signing, where="recipe.signing"),
        registry=registry,
        alias=alias,
        output=Path(deployment.path),
        attempt=attempt,
        stopping=stopped_by_signals(),
    )
    publish(manifest, artifact=deployment, page=page, metrics=metrics)


def stopped_by_signals() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set. Only the main thread can be asked so."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopping.set())
    return stopping
