"""Versions: immutable, named by the content digest of their own manifest.

::

    versions/<digest>/manifest.json         binds every file below by its sha256
                      adapter/ merged/ quantized/ parity/ serving/ evaluations/<role>/ verdict/

The digest covers the files, and with them each part's own manifest. The rest of the manifest (each part's content
digest, the time) follows from those and is held against them whenever it is read.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, InputError
from tunegate.contracts.files import pretty_json, sha256_file, sha256_json
from tunegate.contracts.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_manifest,
)
from tunegate.registry.presence import list_removals, note_arrival, read_removal
from tunegate.storage.copying import differences
from tunegate.storage.interface import Source, Storage
from tunegate.storage.refusals import refuse_damaged

KIND = "version"
_FOLDER = "versions"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """A verified artifact that becomes part of a version.

    Attributes:
        folder: where it lies.
        manifest: what :func:`tunegate.contracts.manifest.verify` returned for it.
    """

    folder: Path
    manifest: Manifest


def publish(storage: Storage, parts: Mapping[str, Part]) -> str:
    """Puts a version into the registry and returns its digest. The same version again is verified, not trusted.

    Args:
        storage: the registry's storage.
        parts: folder inside the version (``adapter``, ``evaluations/base``, …) → the artifact.

    Raises:
        ArtifactError: when a file changed since it was verified, or the registry holds other bytes under this digest.
        ConflictError: while garbage collection removes this version.
    """
    manifest = _version_manifest({role: (part.manifest, _own_entry(role, part)) for role, part in parts.items()})
    digest = manifest.content_digest
    note_arrival(storage, digest)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MANIFEST_NAME
        path.write_bytes(pretty_json(manifest.to_json()))
        sources = {MANIFEST_NAME: Source(path, sha256_file(path))}
        for role, part in parts.items():
            for entry in _entries(role, part.manifest, _own_entry(role, part)):
                name = entry.path.removeprefix(f"{role}/")
                sources[entry.path] = Source(part.folder / name, entry.sha256)
        storage.upload_folder(sources, version_folder(digest), last=MANIFEST_NAME)
    return digest


def has_version(storage: Storage, version: str) -> bool:
    """Whether the registry holds the whole version, and is not about to remove it.

    The mark is asked for first: a collection that ends between the two questions takes its mark away, and the files
    before that.
    """
    return read_removal(storage, version) is None and storage.exists(f"{version_folder(version)}/{MANIFEST_NAME}")


def list_versions(storage: Storage) -> list[str]:
    """The digests of all versions."""
    removals = list_removals(storage)  # asked for first, as in has_version
    keys = (key.split("/") for key in storage.list(_FOLDER))
    whole = {parts[1] for parts in keys if len(parts) == 3 and parts[2] == MANIFEST_NAME}
    return sorted(whole - removals)


def version_folder(version: str) -> str:
    """Where a version lies in the storage."""
    return f"{_FOLDER}/{version}"


def version_folders(storage: Storage) -> set[str]:
    """The digests of all versions, those whose upload never finished and those that are being removed included."""
    return {version for key in storage.stamps(_FOLDER) if _DIGEST.fullmatch(version := key.split("/")[0])}


def find_version(storage: Storage, text: str) -> str:
    """The one version whose digest starts with ``text``.

    Raises:
        InputError: when there is none, or more than one.
    """
    found = [version for version in list_versions(storage) if version.startswith(text)]
    if len(found) != 1:
        raise InputError(
            f"{text!r} does not name a version in {storage.uri}.",
            seen=f"{len(found)} versions that start so",
            expected="the digest of one version, or its first letters",
            remedy="list the versions and take one of them",
            items=found,
        )
    return found[0]


def show_version(storage: Storage, version: str) -> Manifest:
    """A version's manifest: its parts' digests as ``parents``, and every file.

    Raises:
        ArtifactError: when it is absent, or was edited.
    """
    manifest = _read_manifest(storage, version)[0]
    _refuse_edited(storage, manifest, lambda name: _stored(storage, version, name))
    return manifest


def _read_manifest(storage: Storage, version: str) -> tuple[Manifest, bytes]:
    blob = storage.read(f"{version_folder(version)}/{MANIFEST_NAME}") if _DIGEST.fullmatch(version) else None
    if blob is None:
        raise ArtifactError(
            f"There is no version {version} in {storage.uri}.",
            seen="no such version",
            expected="one of the listed versions",
            remedy="list the versions and take one of them",
        )
    manifest = _parsed(blob.data)
    if manifest.content_digest != version or manifest.kind != KIND or manifest.volatile:
        raise _edited(storage, version, f"content digest {manifest.content_digest}")
    return manifest, blob.data


def _stored(storage: Storage, version: str, name: str) -> bytes | None:
    blob = storage.read(f"{version_folder(version)}/{name}")
    return None if blob is None else blob.data


def _refuse_edited(storage: Storage, manifest: Manifest, read: Callable[[str], bytes | None]) -> None:
    """Lets a version's manifest through that is what its parts' own manifests make it.

    Args:
        manifest: one whose digest is the version's name: its ``files`` are sure, and nothing else in it.
        read: name inside the version → its bytes; None where it is missing.

    Raises:
        ArtifactError: naming what differs.
    """
    listed = {entry.path: entry for entry in manifest.files}
    parts: dict[str, tuple[Manifest, FileEntry]] = {}
    wrong = []
    for role in manifest.parents:
        own = listed.get(f"{role}/{MANIFEST_NAME}")
        if own is None:
            raise _edited(storage, manifest.content_digest, f"a part {role!r} without files")
        data = read(own.path)
        if data is None or hashlib.sha256(data).hexdigest() != own.sha256:
            wrong.append(f"{own.path}: {'missing' if data is None else 'changed'}")
        else:
            parts[role] = (_parsed(data), own)
    at = f"{storage.uri}/{version_folder(manifest.content_digest)}"
    refuse_damaged(wrong, at=at, files=len(listed) + 1)
    made = _version_manifest(parts) if parts else Manifest(KIND, (), {}, "")
    differs = [name for name in manifest.to_json() if getattr(manifest, name) != getattr(made, name)]
    if differs:
        named = [role for role, digest in made.parents.items() if manifest.parents[role] != digest]
        said = f"{', '.join(differs)} that its parts do not have"
        raise _edited(storage, manifest.content_digest, said + (f": {', '.join(named)}" if named else ""))


def _parsed(data: bytes) -> Manifest:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MANIFEST_NAME).write_bytes(data)
        return read_manifest(Path(scratch))


def fetch_version(storage: Storage, version: str, folder: Path) -> Manifest:
    """Copies a version into ``folder`` and checks every byte of it while it is read.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra. Then there is no ``folder``.
    """
    manifest, sha256 = _stated(storage, version)
    storage.download_folder(version_folder(version), folder, sha256=sha256)
    try:
        _refuse_edited(storage, manifest, lambda name: (folder / name).read_bytes())
    except ArtifactError:
        shutil.rmtree(folder)
        raise
    return manifest


def verify_version(storage: Storage, version: str) -> Manifest:
    """Reads every byte of a version where it lies, and keeps none.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra.
    """
    manifest, sha256 = _stated(storage, version)
    wrong = differences(sha256, storage.hashes(version_folder(version)))
    refuse_damaged(wrong, at=f"{storage.uri}/{version_folder(version)}", files=len(sha256))
    _refuse_edited(storage, manifest, lambda name: _stored(storage, version, name))
    return manifest


def fetch_part(storage: Storage, version: str, role: str, folder: Path) -> Manifest:
    """Copies one part of a version into ``folder`` and checks every byte of it against the version's own manifest.

    Returns:
        The part's manifest, which is the version's as well: its content digest is the one that the version names.

    Raises:
        ArtifactError: when the version has no such part; naming each file that is missing, changed or extra.
    """
    manifest = show_version(storage, version)
    if role not in manifest.parents:
        raise ArtifactError(
            f"Version {version} in {storage.uri} has no part {role}.",
            seen=", ".join(sorted(manifest.parents)),
            expected=f"{role} among its parts",
            remedy="take another version, or make one with that part",
        )
    sha256 = {e.path.removeprefix(f"{role}/"): e.sha256 for e in manifest.files if e.path.startswith(f"{role}/")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    storage.download_folder(f"{version_folder(version)}/{role}", folder, sha256=sha256)
    return read_manifest(folder)


def _stated(storage: Storage, version: str) -> tuple[Manifest, dict[str, str]]:
    """A version's manifest, and the sha256 of every file: of those that it lists, and its own as it was read."""
    manifest, data = _read_manifest(storage, version)
    sha256 = {entry.path: entry.sha256 for entry in manifest.files}
    return manifest, {**sha256, MANIFEST_NAME: hashlib.sha256(data).hexdigest()}


def _version_manifest(parts: Mapping[str, tuple[Manifest, FileEntry]]) -> Manifest:
    """The same bytes for the same parts, whoever publishes them: two who publish at once agree.

    Args:
        parts: role → the part's manifest, and the entry of that manifest as a file of the version.
    """
    entries = [entry for role, part in parts.items() for entry in _entries(role, *part)]
    return Manifest(
        kind=KIND,
        files=tuple(sorted(entries)),
        parents={role: manifest.content_digest for role, (manifest, _) in sorted(parts.items())},
        settings_digest=sha256_json({}),
        created=max(manifest.created for manifest, _ in parts.values()),
    )


def _entries(role: str, manifest: Manifest, own: FileEntry) -> list[FileEntry]:
    """A part's files as files of the version, its own manifest included: so its lineage is bound as well."""
    return [*(FileEntry(f"{role}/{e.path}", e.size_bytes, e.sha256) for e in manifest.files), own]


def _own_entry(role: str, part: Part) -> FileEntry:
    path = part.folder / MANIFEST_NAME
    return FileEntry(f"{role}/{MANIFEST_NAME}", path.stat().st_size, sha256_file(path))


def _edited(storage: Storage, version: str, seen: str) -> ArtifactError:
    return ArtifactError(
        f"The manifest of version {version} in {storage.uri} is not its own.",
        seen=seen,
        expected=f"content digest {version}, and what its parts' own manifests say",
        remedy="somebody changed the registry: do not use this version",
    )
