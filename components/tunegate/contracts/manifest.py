"""``manifest.json``: what an artifact folder holds, and what it was made from.

The content digest follows sigstore's model-transparency: it covers the set of (path, size, sha256) and the kind, in no
order, and leaves out times, hosts, paths outside the folder and tool versions: equal bytes have equal digests anywhere.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import (
    checked_relative_path,
    content_files_below,
    files_below,
    pretty_json,
    sha256_file,
    sha256_json,
    write_atomically,
)

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
EVALUATION_ROWS_NAME = "evaluation.jsonl"
VALIDATION_ROWS_NAME = "validation.jsonl"

#: The environment variable in which a container image states its own reference.
IMAGE_VARIABLE = "TUNEGATE_IMAGE"
#: The environment variable in which a container image states the git commit it was built from.
COMMIT_VARIABLE = "TUNEGATE_COMMIT"

#: The distributions whose versions decide what a step computes.
TOOLS = (
    "tunegate", "torch", "transformers", "trl", "peft", "bitsandbytes", "llmcompressor",
    "compressed-tensors", "lm-eval", "datasets", "safetensors", "numpy", "scipy",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file: its POSIX path inside the artifact, its size and the sha256 of its bytes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact folder holds.

    Attributes:
        kind: ``dataset``, ``adapter``, ``merged``, ``quantized``, ``evaluation``, ``verdict``, …
        files: every file but the manifest itself, sorted by path.
        parents: role → content digest of each input.
        settings_digest: sha256 of the settings' canonical JSON.
        settings: the settings themselves, for a person who reads the manifest.
        tools: distribution → version of what made it.
        image: the container image it was made in, empty on a plain machine; not part of any digest.
        commit: the git commit of the tunegate that made it, empty when it is not known; not part of any digest.
        created: UTC time, not part of any digest.
        volatile: files that tell of the run, such as its timings; verified like all others. Of these the content digest
            covers the names, and not the bytes.
    """

    kind: str
    files: tuple[FileEntry, ...]
    parents: Mapping[str, str]
    settings_digest: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    commit: str = ""
    created: str = ""
    volatile: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def content_digest(self) -> str:
        """The name of these bytes: sha256 over the kind, the sorted entries and the volatile files' names."""
        kept = [entry for entry in self.files if entry.path not in self.volatile]
        return content_digest(self.kind, kept, volatile=self.volatile)

    @property
    def work_digest(self) -> str:
        """The name of the work that made it: kind, parents and settings."""
        return work_digest(self.kind, self.parents, self.settings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "content_digest": self.content_digest}


def content_digest(kind: str, files: Iterable[FileEntry], *, volatile: Iterable[str] = ()) -> str:
    """sha256 over the kind and the set of file entries, whatever their order.

    Args:
        volatile: names of further files whose bytes do not count. That they are there does: no file is added unnoticed.
    """
    document: dict[str, Any] = {"kind": kind, "files": [asdict(entry) for entry in sorted(files)]}
    if names := sorted(set(volatile)):
        document["volatile"] = names
    return sha256_json(document)


def work_digest(kind: str, parents: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """sha256 over what decides a step's output: kind, input digests and settings."""
    return sha256_json({"kind": kind, "parents": dict(parents), "settings": sha256_json(dict(settings))})


@functools.cache
def _installed() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def tool_versions() -> dict[str, str]:
    """The installed versions of :data:`TOOLS`; a tool that is not installed is left out."""
    return dict(_installed())


def image_reference() -> str:
    """The container image this process runs in, as the image itself states it; empty on a plain machine."""
    return os.environ.get(IMAGE_VARIABLE, "")


@functools.cache
def code_commit() -> str:
    """The git commit of this code: what the image states, or that of its checkout, when nothing is changed there."""
    if stated := os.environ.get(COMMIT_VARIABLE):
        return stated
    own = Path(__file__)
    try:
        for asked in (("ls-files", "--error-unmatch", own.name), ("diff", "--quiet", "HEAD"), ("rev-parse", "HEAD")):
            command = ["git", "-C", str(own.parent), *asked]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def hashed_files(folder: Path, *, hashed: Iterable[FileEntry] = ()) -> tuple[FileEntry, ...]:
    """The entries of every file below ``folder`` but its manifest.

    Args:
        hashed: entries made of the bytes while they were written; only the sizes of these files are compared.

    Raises:
        ValueError: when such a file is absent or of another size: it is not what was hashed.
    """
    known = {entry.path: entry for entry in hashed}
    names = [name for name in files_below(folder) if name != MANIFEST_NAME]
    changed = [path for path in known if path not in names or (folder / path).stat().st_size != known[path].size_bytes]
    if changed:
        raise ValueError(f"{', '.join(sorted(changed))}: not the file that was hashed while it was written")
    return tuple(sorted((*known.values(), *_entries(folder, [name for name in names if name not in known]))))


def _entries(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name)) for name in names)


def write_manifest(
    folder: Path,
    *,
    kind: str,
    parents: Mapping[str, str],
    settings: Mapping[str, Any],
    volatile: Iterable[str] = (),
    hashed: Iterable[FileEntry] = (),
) -> Manifest:
    """Hashes what lies in ``folder`` and was not ``hashed`` before; writes its manifest, last and atomically."""
    manifest = Manifest(
        kind=kind,
        files=hashed_files(folder, hashed=hashed),
        parents=dict(parents),
        settings_digest=sha256_json(dict(settings)),
        settings=dict(settings),
        tools=tool_versions(),
        image=image_reference(),
        commit=code_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        volatile=tuple(sorted(volatile)),
    )
    write_atomically(folder / MANIFEST_NAME, pretty_json(manifest.to_json()))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest without looking at the files.

    Raises:
        ArtifactError: when it is absent, malformed, of another schema version, or its digest is not its own.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is not a complete artifact.",
            seen="no manifest.json" if folder.is_dir() else "no such folder",
            expected="a folder that a tunegate step finished, with its manifest.json",
            remedy="run the step that makes it; an interrupted step leaves only '<name>.partial'",
        )
    try:
        document = json.loads(path.read_text("utf-8"))
        stated = document.pop("content_digest")
        files = tuple(sorted(FileEntry(**entry) for entry in document.pop("files")))
        manifest = Manifest(files=files, volatile=tuple(document.pop("volatile", ())), **document)
        for entry in files:
            checked_relative_path(entry.path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a tunegate manifest of schema version {SCHEMA_VERSION}",
            remedy="make the artifact again",
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has another schema version.",
            seen=str(manifest.schema_version),
            expected=str(SCHEMA_VERSION),
            remedy="use the tunegate version that wrote it, or make the artifact again",
        )
    if manifest.content_digest != stated or sha256_json(dict(manifest.settings)) != manifest.settings_digest:
        raise ArtifactError(
            f"{path} was edited: its digests do not match what it lists.",
            seen=f"content digest {manifest.content_digest}",
            expected=f"content digest {stated}",
            remedy="do not use this artifact; make it again",
        )
    return manifest


def verify(folder: Path, *, kind: str | None = None) -> Manifest:
    """Reads a manifest and checks every file against it.

    Args:
        folder: the artifact.
        kind: the kind it must be, when that matters.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra.
    """
    manifest = read_manifest(folder)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(
            f"{folder} is the wrong kind of artifact.",
            seen=f"kind {manifest.kind!r}",
            expected=f"kind {kind!r}",
            remedy="check which artifact is wired to which input",
        )
    stated = {entry.path: entry for entry in manifest.files}
    present = {name for name in files_below(folder) if name != MANIFEST_NAME}
    wrong = [f"{name}: missing" for name in sorted(stated.keys() - present)]
    wrong += [f"{name}: extra" for name in sorted(present - stated.keys())]
    for name in sorted(present & stated.keys()):
        if (folder / name).stat().st_size != stated[name].size_bytes or sha256_file(folder / name) != stated[
            name
        ].sha256:
            wrong.append(f"{name}: changed")
    if wrong:
        raise ArtifactError(
            f"{folder} is not what its manifest says.",
            seen=f"{len(wrong)} file(s) differ",
            expected=f"exactly the {len(stated)} files of the manifest, byte for byte",
            remedy="do not use this artifact; fetch or make it again",
            items=wrong,
        )
    return manifest


def input_digest(path: Path, *, kind: str | None = None) -> str:
    """The content digest of an input: an artifact's own (verified), or that of a plain file or folder.

    A model from a hub or a user's data file carries no manifest: its digest is made from its bytes, in a folder from
    those of :func:`~tunegate.contracts.files.content_files_below`.

    Raises:
        ArtifactError: when an artifact does not verify or is of another kind, or a plain folder cannot be read.
    """
    if (path / MANIFEST_NAME).is_file():
        return verify(path, kind=kind).content_digest
    if path.is_file():
        entry = FileEntry(path.name, path.stat().st_size, sha256_file(path))
        return content_digest("file", [entry])
    if path.is_dir() and kind is None:
        return content_digest("folder", _entries(path, content_files_below(path)))
    return read_manifest(path).content_digest


def evaluation_rows_digest(dataset: Manifest) -> str:
    """The sha256 of a data set's evaluation rows: what an evaluation depends on, whatever was trained on.

    Raises:
        ArtifactError: when the data set has none.
    """
    return _rows_digest(dataset, EVALUATION_ROWS_NAME)


def validation_rows_digest(dataset: Manifest) -> str:
    """The sha256 of a data set's validation rows: what a comparison on held-out rows of the train side depends on.

    Raises:
        ArtifactError: when the data set has none.
    """
    return _rows_digest(dataset, VALIDATION_ROWS_NAME)


def _rows_digest(dataset: Manifest, name: str) -> str:
    for entry in dataset.files:
        if entry.path == name:
            return entry.sha256
    raise ArtifactError(
        f"The data set has no {name.partition('.')[0]} rows.",
        seen=f"no {name} in its manifest",
        expected="a data set made by prepare",
        remedy="run prepare again",
    )
