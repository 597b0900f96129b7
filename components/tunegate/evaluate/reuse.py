"""Finished evaluations kept by the digest of their work, so that a base is evaluated once and not in every run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.files import files_below, sync_folder
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, tool_versions, verify, work_digest


def kept_evaluation(
    reuse: Path | None, *, kind: str, parents: Mapping[str, str], settings: Mapping[str, Any]
) -> Path | None:
    """The folder of the same work done before by the same tools, verified; None when there is none.

    Raises:
        ArtifactError: when it is there and its files have changed: that is never passed over in silence.
    """
    if reuse is None:
        return None
    folder = reuse / work_digest(kind, parents, settings)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = verify(folder, kind=kind)
    return folder if manifest.tools == tool_versions() else None


def copy_files(source: Path, target: Path) -> None:
    """Copies an artifact's files, all but its manifest."""
    for name in files_below(source):
        if name != MANIFEST_NAME:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def keep_evaluation(reuse: Path | None, output: Path, manifest: Manifest) -> None:
    """Keeps a finished evaluation for the next run: copied beside its place, then renamed."""
    if reuse is None:
        return
    place = reuse / manifest.work_digest
    if place.is_dir() and verify(place).tools == manifest.tools:
        return
    reuse.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=reuse, prefix=f".{manifest.work_digest[:12]}."))
    try:
        copy_files(output, partial)
        shutil.copyfile(output / MANIFEST_NAME, partial / MANIFEST_NAME)
        if place.is_dir():  # made by other versions of the tools
            shutil.rmtree(place)
        partial.rename(place)
        sync_folder(reuse)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
