"""Finished evaluations kept by the digest of their work, so that a base is evaluated once and not in every run."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import files_below, sync_folder
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, tool_versions, verify, work_digest


def kept_evaluation(
    reuse: Path | None,
    *,
    kind: str,
    parents: Mapping[str, str],
    settings: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> Path | None:
    """The folder of the same work done before by the same tools in the same way, verified; None when there is none.

    Args:
        reuse: where finished evaluations are kept.
        kind: of the artifact.
        parents: as in the manifest.
        settings: as in the manifest.
        engine: what this run would compute with. ``auto`` is another dtype on another machine: scores of a GPU in
            bfloat16 never stand in for those of a CPU in float32.

    Raises:
        ArtifactError: when it is there and its files have changed, or it is other work than its name says: that is
            never passed over in silence.
    """
    if reuse is None:
        return None
    folder = reuse / work_digest(kind, parents, settings)
    manifest = _complete(folder, kind=kind)
    if manifest is None or manifest.tools != tool_versions() or _engine(folder) != engine:
        return None
    return folder


def _complete(folder: Path, *, kind: str) -> Manifest | None:
    """The manifest of a kept evaluation, verified; None when there is none or it was not finished."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = verify(folder, kind=kind)
    if manifest.work_digest != folder.name:
        raise ArtifactError(
            f"{folder} is another evaluation than its name says.",
            seen=f"work {manifest.work_digest}",
            expected=f"work {folder.name}",
            remedy="remove the folder; it was copied or renamed by hand",
        )
    return manifest


def _engine(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text("utf-8")).get("engine")


def copy_files(source: Path, target: Path) -> None:
    """Copies an artifact's files, all but its manifest."""
    for name in files_below(source):
        if name != MANIFEST_NAME:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def keep_evaluation(reuse: Path | None, output: Path, manifest: Manifest) -> None:
    """Keeps a finished evaluation for the next run: copied beside its place, then renamed.

    An evaluation in its place is replaced when it was made by other tools or another engine, or was never finished.
    Another process that puts its own there first is as good.
    """
    if reuse is None:
        return
    place = reuse / manifest.work_digest
    kept = _complete(place, kind=manifest.kind)
    if kept is not None and kept.tools == manifest.tools and _engine(place) == _engine(output):
        return
    reuse.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=reuse, prefix=f".{manifest.work_digest[:12]}."))
    try:
        copy_files(output, partial)
        shutil.copyfile(output / MANIFEST_NAME, partial / MANIFEST_NAME)
        shutil.rmtree(place, ignore_errors=True)
        try:
            partial.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(reuse)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
