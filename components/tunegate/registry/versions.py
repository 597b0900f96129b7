"""Versions: immutable, named by the content digest of their own manifest.

::

    versions/<digest>/manifest.json         binds every file below by its sha256, and each part by its content digest
                      adapter/ merged/ quantized/ parity/ serving/ evaluations/<role>/ verdict/
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, InputError
from tunegate.contracts.files import pretty_json, sha256_file, sha256_json
from tunegate.contracts.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_manifest,
    verify,
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
    manifest = _version_manifest(parts)
    digest = manifest.content_digest
    note_arrival(storage, digest)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MANIFEST_NAME
        path.write_bytes(pretty_json(manifest.to_json()))
        sources = {MANIFEST_NAME: Source(path, sha256_file(path))}
        for role, part in parts.items():
            for entry in _entries(role, part):
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
    return _read_manifest(storage, version)[0]


def _read_manifest(storage: Storage, version: str) -> tuple[Manifest, bytes]:
    blob = storage.read(f"{version_folder(version)}/{MANIFEST_NAME}") if _DIGEST.fullmatch(version) else None
    if blob is None:
        raise ArtifactError(
            f"There is no version {version} in {storage.uri}.",
            seen="no such version",
            expected="one of the listed versions",
            remedy="list the versions and take one of them",
        )
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MANIFEST_NAME).write_bytes(blob.data)
        manifest = read_manifest(Path(scratch))
    if manifest.content_digest != version or manifest.kind != KIND:
        raise _edited(storage, version)
    return manifest, blob.data


def fetch_version(storage: Storage, version: str, folder: Path) -> Manifest:
    """Copies a version into ``folder`` and checks every byte of it while it is read.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra.
    """
    manifest, sha256 = _stated(storage, version)
    storage.download_folder(version_folder(version), folder, sha256=sha256)
    return manifest


def verify_version(storage: Storage, version: str) -> Manifest:
    """Reads every byte of a version where it lies, and keeps none.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra.
    """
    manifest, sha256 = _stated(storage, version)
    wrong = differences(sha256, storage.hashes(version_folder(version)))
    refuse_damaged(wrong, at=f"{storage.uri}/{version_folder(version)}", files=len(sha256))
    return manifest


def fetch_part(storage: Storage, version: str, role: str, folder: Path) -> Manifest:
    """Copies one part of a version into ``folder`` and checks every byte of it against the part's own manifest.

    Raises:
        ArtifactError: naming each file that is missing, changed or extra.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    storage.download_folder(f"{_FOLDER}/{version}/{role}", folder)
    return verify(folder)


def _stated(storage: Storage, version: str) -> tuple[Manifest, dict[str, str]]:
    """A version's manifest, and the sha256 of every file: of those that it lists, and its own as it was read."""
    manifest, data = _read_manifest(storage, version)
    sha256 = {entry.path: entry.sha256 for entry in manifest.files}
    return manifest, {**sha256, MANIFEST_NAME: hashlib.sha256(data).hexdigest()}


def _version_manifest(parts: Mapping[str, Part]) -> Manifest:
    """The same bytes for the same parts, whoever publishes them: two who publish at once agree."""
    entries = [entry for role, part in parts.items() for entry in _entries(role, part)]
    return Manifest(
        kind=KIND,
        files=tuple(sorted(entries)),
        parents={role: part.manifest.content_digest for role, part in sorted(parts.items())},
        settings_digest=sha256_json({}),
        created=max(part.manifest.created for part in parts.values()),
    )


def _entries(role: str, part: Part) -> list[FileEntry]:
    """A part's files as files of the version, its own manifest included: so its lineage is bound as well."""
    own = part.folder / MANIFEST_NAME
    entries = [FileEntry(f"{role}/{entry.path}", entry.size_bytes, entry.sha256) for entry in part.manifest.files]
    return [*entries, FileEntry(f"{role}/{MANIFEST_NAME}", own.stat().st_size, sha256_file(own))]


def _edited(storage: Storage, version: str) -> ArtifactError:
    return ArtifactError(
        f"The manifest of version {version} in {storage.uri} is not its own.",
        seen="a manifest with another digest",
        expected=f"content digest {version}",
        remedy="somebody changed the registry: do not use this version",
    )
