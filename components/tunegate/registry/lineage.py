"""Where a version comes from, as an in-toto statement with SLSA's provenance: a file of the version itself.

Follows https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1. The subjects are the version's files by
their sha256, so that any in-toto verifier can hold them against the bytes. What is known by a tunegate content digest
(a folder as a whole: the base, the data set, each part) is named by ``tunegateContent``. The statement holds no time of
its own making: the same parts give the same statement, and so the same version.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.files import pretty_json, sha256_file, sha256_json
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, hashed_files
from tunegate.registry.versions import Part

ROLE = "lineage"
STATEMENT_NAME = "statement.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
#: What the predicate's parameters mean: the steps of tunegate's pipeline, by the part each made.
BUILD_TYPE = "tunegate:finetune/v1"


@contextlib.contextmanager
def with_lineage(parts: Mapping[str, Part]) -> Iterator[dict[str, Part]]:
    """The parts of a version and, as one more of them, the statement about them."""
    with tempfile.TemporaryDirectory(prefix="tunegate-lineage-") as scratch:
        folder = Path(scratch)
        (folder / STATEMENT_NAME).write_bytes(pretty_json(statement(parts)))
        manifest = Manifest(
            kind=ROLE,
            files=hashed_files(folder),
            parents={role: part.manifest.content_digest for role, part in sorted(parts.items())},
            settings_digest=sha256_json({}),
            created=max(part.manifest.created for part in parts.values()),
        )
        (folder / MANIFEST_NAME).write_bytes(pretty_json(manifest.to_json()))
        yield {**parts, ROLE: Part(folder, manifest)}


def statement(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The statement: what the version's files are, what they were made from, how and by what."""
    manifests = {role: part.manifest for role, part in sorted(parts.items())}
    return {
        "_type": STATEMENT_TYPE,
        "subject": _subjects(parts),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {role: dict(manifest.settings) for role, manifest in manifests.items()},
                "internalParameters": {
                    role: {"settings_digest": manifest.settings_digest, "parents": dict(manifest.parents)}
                    for role, manifest in manifests.items()
                },
                "resolvedDependencies": _materials(manifests),
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": _tools(manifests)},
                "metadata": {"finishedOn": max(manifest.created for manifest in manifests.values())},
                "byproducts": [
                    {"name": role, "digest": {"tunegateContent": manifest.content_digest}}
                    for role, manifest in manifests.items()
                ],
            },
        },
    }


def _subjects(parts: Mapping[str, Part]) -> list[dict[str, Any]]:
    """Every file of the version but the statement's own, as it is named in the version."""
    named = []
    for role, part in sorted(parts.items()):
        named += [(f"{role}/{entry.path}", entry.sha256) for entry in part.manifest.files]
        named.append((f"{role}/{MANIFEST_NAME}", sha256_file(part.folder / MANIFEST_NAME)))
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(named)]


def _materials(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """What went in and is no part of the version: base, data, rows; the images; the code's commit, when known."""
    made = {manifest.content_digest for manifest in manifests.values()}
    found = {
        (name.rsplit("/", 1)[-1], digest)
        for manifest in manifests.values()
        for name, digest in manifest.parents.items()
        if digest not in made
    }
    materials: list[dict[str, Any]] = [
        {"name": name, "digest": {"tunegateContent": digest}} for name, digest in sorted(found)
    ]
    images = sorted({manifest.image for manifest in manifests.values() if manifest.image})
    materials += [{"name": "image", "uri": image} for image in images]
    commits = sorted({manifest.commit for manifest in manifests.values() if manifest.commit})
    materials += [{"name": "tunegate", "digest": {"gitCommit": commit}} for commit in commits]
    return materials


def _tools(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Tool → its version, or its versions where steps ran in different images."""
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for tool, version in manifest.tools.items():
            versions.setdefault(tool, set()).add(version)
    return {tool: ", ".join(sorted(found)) for tool, found in sorted(versions.items())}
