"""What the gate is given: every folder with its manifest, each byte verified before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.manifest import Manifest, verify

#: What must be there, by kind; the first is judged by and not promoted.
ARTIFACTS = ("dataset", "adapter", "merged", "quantized")

#: What may be absent, by kind: the policy decides whether that is a FAIL.
REPORTS = ("parity", "serving", "champion")


@dataclass(frozen=True)
class Given:
    """The verified inputs.

    Attributes:
        folders: kind of artifact or report → its folder; a report that was not given is left out.
        manifests: the same kinds → what was verified.
        evaluations: role → its folder.
        subjects: everything that the verdict is bound to: name → content digest.
    """

    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    evaluations: Mapping[str, Path]
    subjects: Mapping[str, str]


def verified(folders: Mapping[str, Path | None], evaluations: Mapping[str, Path]) -> Given:
    """Verifies all that is given.

    Args:
        folders: kind → folder, for every kind of :data:`ARTIFACTS` and :data:`REPORTS`.
        evaluations: role → what evaluate wrote.

    Raises:
        ArtifactError: for the first that does not verify, or is of another kind.
    """
    there = {kind: folder for kind, folder in folders.items() if folder is not None}
    manifests = {kind: verify(folder, kind=kind) for kind, folder in there.items()}
    digests = {kind: manifest.content_digest for kind, manifest in manifests.items()}
    judged_by = {
        f"evaluations/{role}": verify(folder, kind="evaluation").content_digest
        for role, folder in sorted(evaluations.items())
    }
    subjects = {kind: digests[kind] for kind in ARTIFACTS}
    subjects |= judged_by | {kind: digests[kind] for kind in REPORTS if kind in digests}
    return Given(there, manifests, dict(sorted(evaluations.items())), subjects)
