"""Copies that are hashed on the way, and the comparison of a stored folder with what it should hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from tunegate.storage.interface import Source
from tunegate.storage.refusals import changed

_CHUNK_BYTES = 4 << 20


class HashOnly:
    """Takes what a file would take and keeps its sha256."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class HashedFile(HashOnly):
    """A new file that knows the sha256 of what was written to it, and is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes) -> int:
        super().write(data)
        return self._file.write(data)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file as file:
            if kind is None:
                file.flush()
                os.fsync(file.fileno())


def copy_hashed(source: Path, target: Path) -> str:
    """Copies a file durably and returns the sha256 of its bytes."""
    with source.open("rb") as read, HashedFile(target) as written:
        while chunk := read.read(_CHUNK_BYTES):
            written.write(chunk)
    return written.sha256


def copy_checked(source: Source, target: Path) -> None:
    """Copies a file durably, and refuses it when its bytes are not those that were judged.

    Raises:
        ArtifactError: when the bytes changed since their digest was taken.
    """
    sha256 = copy_hashed(source.path, target)
    if sha256 != source.sha256:
        raise changed(source, f"sha256 {sha256}")


def differences(expected: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What is not as it should be: each file that is missing, changed or extra.

    Args:
        expected: name → sha256.
        present: name → sha256 of what is there.
    """
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - present.keys())]
    wrong += [f"{name}: extra" for name in sorted(present.keys() - expected.keys())]
    wrong += [f"{name}: changed" for name in sorted(present.keys() & expected) if present[name] != expected[name]]
    return wrong
