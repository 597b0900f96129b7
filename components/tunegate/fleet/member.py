"""An adapter of a fleet on this machine: a folder as it is given, or the part of a version that the gate passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, GateRefused
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.verdict import read_verdict
from tunegate.fleet.resolve import ADAPTER, Member, Resolved
from tunegate.registry.judged import refuse_unjudged
from tunegate.registry.settings import SigningSettings
from tunegate.registry.signatures import fetch_signed_version, verify_signature
from tunegate.registry.versions import fetch_part, show_version, version_folder
from tunegate.serving.limits import AnswerLimits, limits_of_policy
from tunegate.serving.probes import PROBES_NAME
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

_VERDICT, _SERVING, _MERGED, _MERGE_NAME = "verdict", "serving", "merged", "merge.json"

#: Which base a merge must have started from for its evaluation to speak of the adapter on the base as it is.
_ORIGINAL = "original"


@dataclass(frozen=True)
class Given:
    """An adapter, and what is known of it.

    Attributes:
        folder: where it lies.
        probes: what the version was asked; None for a folder, or a version that was never served.
        limits: those of the version's policy; None for a folder.
    """

    folder: Path
    probes: Path | None
    limits: AnswerLimits | None


def given_adapter(resolved: Resolved, member: Member, signing: SigningSettings, scratch: Path) -> Given:
    """An adapter's folder; of a version, what is needed of it is fetched and verified.

    Args:
        resolved: the fleet.
        member: which adapter.
        signing: whose signature on a version counts.
        scratch: an empty folder for what is fetched.

    Raises:
        ArtifactError: when a byte is not the version's own, or its signature does not count.
        GateRefused: when the gate did not pass it, or judged its adapter on another base than this one.
    """
    if not member.version:
        return Given(Path(member.folder), None, None)
    storage = open_storage(resolved.registry)
    folder = scratch / "version"
    manifest = _fetched(storage, member.version, folder, signing)
    refuse_unjudged(read_verdict(folder / _VERDICT), manifest.parents)
    _refuse_other_base(storage, member, manifest)
    probes = folder / _SERVING / PROBES_NAME
    limits = limits_of_policy(folder / _VERDICT / "policy.json")
    return Given(folder / ADAPTER, probes if probes.is_file() else None, limits)


def _fetched(storage: Storage, version: str, folder: Path, signing: SigningSettings) -> Manifest:
    """The parts that a fleet needs. A signature is over all of a version: where one counts, all is fetched."""
    if signing.method != "none":
        return fetch_signed_version(storage, version, folder, signing)
    verify_signature(storage, version, folder, signing)  # one that nothing was given to verify with is refused
    manifest = show_version(storage, version)
    for role in (ADAPTER, _VERDICT, _SERVING):
        if role in manifest.parents:
            fetch_part(storage, version, role, folder / role)
    return manifest


def _refuse_other_base(storage: Storage, member: Member, manifest: Manifest) -> None:
    """A fleet serves an adapter on the base as it is. One that was merged into 4-bit weights was judged on others."""
    report = _merge_report(storage, member.version, manifest)
    if report.get("merge_base") != _ORIGINAL:
        raise GateRefused(
            f"The adapter {member.alias} was not judged on this base.",
            seen=f"version {member.version[:12]} was merged with merge_base: {report.get('merge_base')}",
            expected=f"merge_base: {_ORIGINAL}, so that what was evaluated is the adapter on the base as it is",
            remedy="run its recipe with that, or serve the version by itself with `tunegate deploy`",
        )


def _merge_report(storage: Storage, version: str, manifest: Manifest) -> Mapping[str, object]:
    name = f"{_MERGED}/{_MERGE_NAME}"
    stated = next((entry.sha256 for entry in manifest.files if entry.path == name), None)
    blob = storage.read(f"{version_folder(version)}/{name}")
    if blob is None or hashlib.sha256(blob.data).hexdigest() != stated:
        raise ArtifactError(
            f"Version {version[:12]} does not say on which base its adapter was judged.",
            seen=f"no {name}, or one that was changed",
            expected="what merge wrote",
            remedy="promote a version that a pipeline made",
        )
    found: Mapping[str, object] = json.loads(blob.data)
    return found
