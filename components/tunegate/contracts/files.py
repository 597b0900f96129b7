"""Files: written whole or not at all, hashed, and never outside their folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from tunegate.contracts.errors import ArtifactError

_CHUNK_BYTES = 1 << 20

#: The kinds of file that a model or a data set consists of.
_CONTENT_SUFFIXES = {".safetensors", ".json", ".jsonl", ".parquet", ".model", ".txt", ".jinja"}


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file. See :func:`json_lines`.

    Raises:
        ArtifactError: naming the lines that are no JSON object in UTF-8.
    """
    return json_lines(path.read_bytes(), where=str(path))


def json_lines(data: bytes, *, where: str) -> list[dict[str, Any]]:
    """The rows of JSON Lines; blank lines are skipped.

    Only a line feed ends a row. ``str.splitlines`` would also split at U+2028, U+2029 and U+0085, which JSON allows
    inside a string.

    Raises:
        ArtifactError: naming the lines that are no JSON object in UTF-8.
    """
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            wrong.append(f"line {number}: {type(row).__name__}")
    if wrong:
        raise ArtifactError(
            f"{where} cannot be read.",
            seen=f"{len(wrong)} line(s) that are no JSON object",
            expected="one JSON object a line, in UTF-8",
            remedy="make the artifact again",
            items=wrong,
        )
    return rows


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


def read_json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        ValueError: when it cannot be read, is no JSON or no object; callers say what it should have been.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__} where a JSON object belongs")
    return document


def content_files_below(folder: Path) -> list[str]:
    """The files below a plain folder that belong to a model or data set, as sorted relative POSIX paths.

    A snapshot of a hub is a folder of links to blobs: links to files count as the files they lead to. What is hidden,
    and what is no content (a README), is left out: other tools fetch or write it, and no model answers otherwise by it.

    Raises:
        ArtifactError: when a link leads to a folder or nowhere, when content is a special file, or when there is none.
    """
    found: list[str] = []
    wrong: list[str] = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink() and path.is_dir():
            wrong.append(f"{name.as_posix()}: a link to a folder")
        elif path.suffix not in _CONTENT_SUFFIXES or path.is_dir():
            continue
        elif path.is_file():
            found.append(name.as_posix())
        else:
            wrong.append(f"{name.as_posix()}: {'a link that leads nowhere' if path.is_symlink() else 'a special file'}")
    if wrong or not found:
        raise ArtifactError(
            f"{folder} cannot be read as a model or data set.",
            seen=f"{len(wrong)} path(s) that lead to no file" if wrong else "no file of a model or data set",
            expected="files, or links to files, of the kinds " + ", ".join(sorted(_CONTENT_SUFFIXES)),
            remedy="download it again, or name the folder that holds the files",
            items=sorted(wrong),
        )
    return sorted(found)
