"""From KFP's arguments to :func:`tunegate.evaluate.step.run`, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError, reports_errors
from tunegate.contracts.launch import KfpArtifact, KfpMetrics, publish
from tunegate.contracts.settings import parse_settings
from tunegate.evaluate.champion import asked_roles, run_champion
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.models.files import resolve_model


def api_key(settings: EvaluateSettings) -> str:
    """The key of the server that is asked, out of the environment; empty where none is wanted.

    Raises:
        SettingsError: when the variable that should hold it is not set.
    """
    name = settings.api_key_variable
    if not name:
        return ""
    if not os.environ.get(name):
        raise SettingsError(
            f"evaluate.api_key_variable names {name}, which is not set.",
            seen="no such environment variable, or an empty one",
            expected="the server's key in it",
            remedy=f"set {name} where the evaluation runs; on a cluster from a Secret",
        )
    return os.environ[name]


@reports_errors
def launch_base(
    settings: Mapping[str, Any],
    *,
    base_model: str,
    reuse: str,
    dataset: KfpArtifact,
    evaluation: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step on the base model at ``evaluation.path``."""
    parsed = parse_settings(EvaluateSettings, settings, where="recipe.evaluate")
    manifest = run(
        parsed,
        model=resolve_model(base_model),
        dataset=Path(dataset.path),
        output=Path(evaluation.path),
        reuse=Path(reuse) if reuse else None,
        api_key=api_key(parsed),
    )
    publish(manifest, artifact=evaluation, page=page, metrics=metrics)


@reports_errors
def launch_model(
    settings: Mapping[str, Any],
    *,
    reuse: str,
    model: KfpArtifact,
    dataset: KfpArtifact,
    evaluation: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Runs the step on a model of this pipeline at ``evaluation.path``."""
    parsed = parse_settings(EvaluateSettings, settings, where="recipe.evaluate")
    manifest = run(
        parsed,
        model=Path(model.path),
        dataset=Path(dataset.path),
        output=Path(evaluation.path),
        reuse=Path(reuse) if reuse else None,
        api_key=api_key(parsed),
    )
    publish(manifest, artifact=evaluation, page=page, metrics=metrics)


@reports_errors
def launch_champion(
    settings: Mapping[str, Any],
    *,
    gate: Mapping[str, Any],
    registry: str,
    alias: str,
    reuse: str,
    dataset: KfpArtifact,
    like: KfpArtifact,
    champion: KfpArtifact,
    page: KfpArtifact,
    metrics: KfpMetrics,
) -> None:
    """Evaluates what the alias points at, as far as the gate's policy compares with it, at ``champion.path``."""
    parsed = parse_settings(EvaluateSettings, settings, where="recipe.evaluate")
    manifest = run_champion(
        parsed,
        roles=asked_roles(gate.get("policy", {})),
        registry=registry,
        alias=alias,
        dataset=Path(dataset.path),
        like=Path(like.path),
        output=Path(champion.path),
        reuse=Path(reuse) if reuse else None,
        api_key=api_key(parsed),
    )
    publish(manifest, artifact=champion, page=page, metrics=metrics)
