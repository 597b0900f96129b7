"""Finished tasks kept by the digest of their work: one that is killed is not done again, nor is a base in every run."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import canonical_json, sync_folder
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, tool_versions, verify, work_digest, write_manifest
from tunegate.evaluate.measured import Measured

KIND = "measured_task"
_RESULT_NAME = "measured.json"


@dataclass(frozen=True)
class Work:
    """What decides a task's results.

    Attributes:
        parents: digests of the model and of the task's rows.
        settings: what is asked, and how.
        engine: what it is computed with. ``auto`` is another dtype on another machine: scores of a GPU in bfloat16
            never stand in for those of a CPU in float32.
    """

    parents: Mapping[str, str]
    settings: Mapping[str, Any]
    engine: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The name of the folder in which it is kept."""
        return work_digest(KIND, self.parents, self.settings)


def kept(folder: Path, work: Work) -> dict[str, Measured] | None:
    """What the same work found before, by the same tools in the same way; None when it was not done.

    Raises:
        ArtifactError: when it is there and its files have changed, or it is other work than its name says: that is
            never passed over in silence.
    """
    place = folder / work.digest
    manifest = _complete(place)
    if manifest is None or manifest.tools != tool_versions():
        return None
    document = json.loads((place / _RESULT_NAME).read_text("utf-8"))
    if document["engine"] != dict(work.engine):
        return None
    return {name: Measured.from_json(found) for name, found in document["measured"].items()}


def _complete(place: Path) -> Manifest | None:
    """The manifest of a kept task, verified; None when there is none or it was not finished."""
    if not (place / MANIFEST_NAME).is_file():
        return None
    manifest = verify(place, kind=KIND)
    if manifest.work_digest != place.name:
        raise ArtifactError(
            f"{place} is another evaluation than its name says.",
            seen=f"work {manifest.work_digest}",
            expected=f"work {place.name}",
            remedy="remove the folder; it was copied or renamed by hand",
        )
    return manifest


def keep(folder: Path, work: Work, measured: Mapping[str, Measured]) -> None:
    """Keeps a finished task: written beside its place, then renamed.

    What is in its place was made by other tools or another engine, or was never finished, and is replaced. Another
    process that puts its own there first is as good.
    """
    place = folder / work.digest
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=f".{place.name[:12]}."))
    try:
        document = {
            "engine": dict(work.engine),
            "measured": {name: found.to_json() for name, found in measured.items()},
        }
        (partial / _RESULT_NAME).write_bytes(canonical_json(document))
        write_manifest(partial, kind=KIND, parents=work.parents, settings=work.settings)
        shutil.rmtree(place, ignore_errors=True)
        try:
            partial.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
