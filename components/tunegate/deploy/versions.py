"""The files of a version on this machine: fetched whole, verified at each use, and only what the gate passed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import read_manifest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.verdict import read_verdict
from tunegate.registry.judged import refuse_unjudged
from tunegate.registry.settings import SigningSettings
from tunegate.registry.signatures import verify_signature
from tunegate.registry.versions import KIND, fetch_version
from tunegate.storage.interface import Storage

#: Part of a version that is served.
SERVED = "quantized"

TASK = "deploy"

_PARTIAL = ".partial"


def version_here(storage: Storage, version: str, kept: Path, signing: SigningSettings) -> Path:
    """A version's folder below ``kept``: fetched when it is not there, and verified whole either way.

    Args:
        storage: the registry's.
        version: its digest.
        kept: where versions are kept, each under its digest.
        signing: whose signature counts.

    Raises:
        ArtifactError: when a byte is not the version's own, or its signature does not count.
        GateRefused: when the gate did not pass it.
    """
    folder = kept / version
    if not _is_whole(folder, version):
        partial = kept / f"{version}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch_version(storage, version, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(folder)
    verify_signature(storage, version, folder, signing)
    refuse_unjudged(read_verdict(folder / "verdict"), read_manifest(folder).parents)
    return folder


def keep_newest(kept: Path, count: int, *, serving: str) -> None:
    """Removes the files of versions beyond the ``count`` that were served last; never those of ``serving``."""
    folders = [p for p in kept.iterdir() if p.is_dir() and p.name != serving and p.suffix != _PARTIAL]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders[max(count - 1, 0) :]:
        shutil.rmtree(folder)


def _is_whole(folder: Path, version: str) -> bool:
    """Whether a version's files are here; a copy that was changed is removed, and the registry asked again."""
    if not folder.exists():
        return False
    try:
        manifest = verify(folder, kind=KIND)
        if manifest.content_digest == version:
            return True
        seen = f"it is version {manifest.content_digest}"
    except ArtifactError as error:
        seen = str(error)
    say(TASK, f"the copy in {folder} is not what it was and is fetched again: {seen}")
    shutil.rmtree(folder)
    return False
