"""What every component's launcher does with a step's result: shows its page, its figures and its digest in KFP."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Protocol

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import Manifest

PAGE_NAME = "page.html"
SUMMARY_NAME = "summary.json"


class KfpArtifact(Protocol):
    """What is used of ``kfp.dsl.Artifact``; a Protocol, so that this module needs no kfp."""

    path: str
    metadata: dict[str, Any]


class KfpMetrics(Protocol):
    """What is used of ``kfp.dsl.Metrics``."""

    def log_metric(self, metric: str, value: float) -> None: ...


def publish(manifest: Manifest, *, artifact: KfpArtifact, page: KfpArtifact, metrics: KfpMetrics) -> None:
    """Fills a component's outputs from the artifact folder that its step wrote at ``artifact.path``.

    Args:
        manifest: what the step returned.
        artifact: the step's own output; gets the content digest as metadata, which KFP shows and keeps.
        page: an HTML output; gets a copy of ``page.html``.
        metrics: a metrics output; gets each number of ``summary.json``.

    Raises:
        ArtifactError: when the step wrote no page or no summary.
    """
    folder = Path(artifact.path)
    artifact.metadata.update({"kind": manifest.kind, "content_digest": manifest.content_digest})
    Path(page.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_present(folder / PAGE_NAME), page.path)
    for name, value in read_summary(folder).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            metrics.log_metric(name, value)


def read_summary(folder: Path) -> dict[str, Any]:
    """An artifact's ``summary.json``: name → number or text.

    Raises:
        ArtifactError: when it is absent.
    """
    summary: dict[str, Any] = json.loads(_present(folder / SUMMARY_NAME).read_text("utf-8"))
    return summary


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ArtifactError(
            f"{path.parent} holds no {path.name}.",
            seen="no such file",
            expected=f"{PAGE_NAME} and {SUMMARY_NAME} in every artifact",
            remedy="make the artifact again with this version of tunegate",
        )
    return path
