"""What differs between two versions: settings, data and metrics of each part, from their manifests and summaries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import MANIFEST_NAME
from tunegate.registry.versions import show_version, version_folder
from tunegate.storage.interface import Storage

_SUMMARY_NAME = "summary.json"

What = Literal["settings", "data", "metrics"]


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in two versions.

    Attributes:
        part: which part of the version: ``adapter``, ``evaluations/merged``, …
        what: ``settings`` of the step that made it; ``data``: what went into it from outside, by digest; ``metrics``:
            what it measured, from its summary.
        name: dotted, where it is nested.
        before, after: the values; None where there is none.
    """

    part: str
    what: What
    name: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_versions(storage: Storage, before: str, after: str) -> list[Difference]:
    """Everything that differs, part by part.

    Raises:
        ArtifactError: when a version is absent, or a document of it is not what its manifest says.
    """
    old, new = _documents(storage, before), _documents(storage, after)
    return [
        Difference(*key, before=old.get(key), after=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _documents(storage: Storage, version: str) -> dict[tuple[str, What, str], Any]:
    """(part, what, name) → value, for everything that can be compared."""
    manifest = show_version(storage, version)
    files = {entry.path: entry.sha256 for entry in manifest.files}
    own = set(manifest.parents.values())
    found: dict[tuple[str, What, str], Any] = {}
    for role in manifest.parents:
        part = _read(storage, version, f"{role}/{MANIFEST_NAME}", files)
        found |= {(role, "settings", name): value for name, value in _flat(part["settings"]).items()}
        outside = {name: digest for name, digest in part["parents"].items() if digest not in own}
        found |= {(role, "data", name): digest for name, digest in outside.items()}
        if f"{role}/{_SUMMARY_NAME}" in files:
            summary = _flat(_read(storage, version, f"{role}/{_SUMMARY_NAME}", files))
            found |= {(role, "metrics", name): value for name, value in summary.items()}
    return found


def _read(storage: Storage, version: str, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """A JSON document of a version, held against the version's manifest."""
    blob = storage.read(f"{version_folder(version)}/{name}")
    if blob is None or hashlib.sha256(blob.data).hexdigest() != files[name]:
        raise ArtifactError(
            f"{name} of version {version} in {storage.uri} is not what the version's manifest says.",
            seen="no such file" if blob is None else "a file with another digest",
            expected=f"sha256 {files[name]}",
            remedy="somebody changed the registry: do not use this version",
        )
    document: dict[str, Any] = json.loads(blob.data)
    return document


def _flat(document: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """A nested document with dotted names; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{start}{name}.")
        else:
            found[f"{start}{name}"] = value
    return found
