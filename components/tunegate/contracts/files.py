"""Files: written whole or not at all, hashed, and never outside their folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from tunegate.contracts.errors import ArtifactError

_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(document: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_json(document: Any) -> str:
    """The sha256 of a document's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def pretty_json(document: Any) -> bytes:
    """JSON for people: indented, keys as given, one newline at the end."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def checked_relative_path(text: str) -> PurePosixPath:
    """A relative POSIX path that stays inside its folder.

    Raises:
        ArtifactError: for absolute paths, ``..``, backslashes and empty parts.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\\" in text or str(path) != text:
        raise ArtifactError(
            f"The path {text!r} is not allowed in an artifact.",
            seen=repr(text),
            expected="a relative POSIX path without '..', such as 'weights/model.safetensors'",
            remedy="do not use this artifact: its manifest was not written by tunegate",
        )
    return path


def files_below(folder: Path) -> list[str]:
    """Every regular file below ``folder`` as a sorted relative POSIX path.

    Raises:
        ArtifactError: when a symbolic link or a special file lies in it.
    """
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(
                f"{folder} holds something that is not a plain file.",
                seen=f"{name} is a link or a special file",
                expected="regular files and folders only",
                remedy="replace it by the file itself",
            )
        if path.is_file():
            found.append(name)
    return sorted(found)
