"""Copies that are hashed on the way, and the comparison of a stored folder with what it should hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.files import files_below, sha256_file
from tunegate.storage.interface import Source
from tunegate.storage.refusals import changed

_CHUNK_BYTES = 4 << 20


def copy_checked(source: Source, target: Path) -> None:
    """Copies a file durably, and refuses it when its bytes are not those that were judged.

    Raises:
        ArtifactError: when the bytes changed since their digest was taken.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.path.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            digest.update(chunk)
            written.write(chunk)
        written.flush()
        os.fsync(written.fileno())
    if digest.hexdigest() != source.sha256:
        raise changed(source, f"sha256 {digest.hexdigest()}")


def differences(files: Mapping[str, Source], folder: Path) -> list[str]:
    """What in ``folder`` is not as ``files`` says: each file that is missing, changed or extra."""
    present = set(files_below(folder))
    wrong = [f"{name}: missing" for name in sorted(files.keys() - present)]
    wrong += [f"{name}: extra" for name in sorted(present - files.keys())]
    wrong += [
        f"{name}: changed"
        for name in sorted(present & files.keys())
        if sha256_file(folder / name) != files[name].sha256
    ]
    return wrong
