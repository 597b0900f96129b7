"""What would be served: an alias's version as the registry has it now, judged and signed, with its probes.

Of a version whose signature is not asked for, only the reports are fetched: the weights go from the bucket to the
servers, which verify them. A signature is of every file, so that one is verified whole.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, InputError, SettingsError
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.verdict import read_verdict
from tunegate.deploy.check import probes_of, refuse_other_flags
from tunegate.deploy.settings import ClusterSettings
from tunegate.deploy.versions import SERVED
from tunegate.registry.aliases import current
from tunegate.registry.judged import refuse_unjudged
from tunegate.registry.settings import SigningSettings
from tunegate.registry.signatures import fetch_signed_version
from tunegate.registry.versions import fetch_part, show_version
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags
from tunegate.serving.limits import AnswerLimits, limits_of_policy
from tunegate.serving.probes import Probes
from tunegate.storage.interface import Storage

#: Parts of a version that say whether, and how, it may be served.
_REPORTS = ("verdict", "serving")


@dataclass(frozen=True)
class Release:
    """A version that may be served.

    Attributes:
        alias: what it is served as.
        record: the alias's record that points at it.
        version: its digest.
        model: the content digest of what is served: the name under which it must answer.
        storage_uri: where KServe fetches it.
        flags: the flags of production.
        probes: what the evaluated model answers; None where nothing is compared.
        limits: how far answers may be from that.
    """

    alias: str
    record: str
    version: str
    model: str
    storage_uri: str
    flags: ServingFlags
    probes: Probes | None
    limits: AnswerLimits

    @property
    def predictor(self) -> str:
        """The predictor's name: KServe names the servers after it, and keeps those of each version apart by it."""
        return f"v{self.version[:10]}"


def release_of(
    storage: Storage, alias: str, settings: ClusterSettings, flags: ServingFlags, signing: SigningSettings
) -> Release:
    """The release an alias points at.

    Raises:
        InputError: when there is no such alias, or the cluster could not fetch from this registry.
        SettingsError: when it would be served with other flags than it was checked with.
        ArtifactError: when a file is not the version's own, its signature does not count, or it holds no probes.
        GateRefused: when the gate did not pass it.
    """
    record = current(storage, alias)
    if record is None:
        raise InputError(
            f"There is no alias {alias} in {storage.uri} to serve.",
            seen="no such alias",
            expected="an alias that points at a promoted version",
            remedy="promote one first, or name another alias: `tunegate registry list`",
        )
    prefix = _prefix(storage, settings)
    with tempfile.TemporaryDirectory(prefix="tunegate-version-") as scratch:
        folder = Path(scratch) / record.version
        manifest = _fetched(storage, record.version, folder, signing)
        if SERVED not in manifest.parents:
            raise ArtifactError(
                f"Version {record.version[:12]} holds no part {SERVED}.",
                seen=", ".join(sorted(manifest.parents)),
                expected=f"{SERVED}, which is what is served",
                remedy="promote a version that a run of this pipeline made",
            )
        refuse_unjudged(read_verdict(folder / "verdict"), manifest.parents)
        probes, limits = None, AnswerLimits()
        if settings.check == "probes":
            probes, limits = probes_of(folder), limits_of_policy(folder / "verdict" / "policy.json")
            refuse_other_flags(folder, flags, ServeEnvironment(Path("python"), "", cpu=settings.cpu))
            refuse_other_probes(probes, manifest.parents[SERVED])
    return Release(
        alias=alias,
        record=record.digest,
        version=record.version,
        model=manifest.parents[SERVED],
        storage_uri=f"{prefix}/versions/{record.version}/{SERVED}",
        flags=flags,
        probes=probes,
        limits=limits,
    )


def points_elsewhere(storage: Storage, release: Release) -> str:
    """Where the alias points now, in words, when that is no longer the release's version; empty while it is."""
    record = current(storage, release.alias)
    if record is None:
        return "there is no such alias any more"
    return f"{record.version[:12]} ({record.action})" if record.version != release.version else ""


def refuse_other_probes(probes: Probes, model: str) -> None:
    """Raises ArtifactError for probes that are of another model than the one served."""
    if probes.model != model:
        raise ArtifactError(
            "The version's probes are of another model than it would serve.",
            seen=probes.model,
            expected=model,
            remedy="do not serve this version: promote another one",
        )


def _fetched(storage: Storage, version: str, folder: Path, signing: SigningSettings) -> Manifest:
    if signing.method != "none":
        return fetch_signed_version(storage, version, folder, signing)
    manifest = show_version(storage, version)
    for role in _REPORTS:
        if role in manifest.parents:
            fetch_part(storage, version, role, folder / role)
    return manifest


def _prefix(storage: Storage, settings: ClusterSettings) -> str:
    prefix = (settings.storage_prefix or storage.uri).rstrip("/")
    if "://" not in prefix:
        raise SettingsError(
            "The cluster cannot fetch models from this registry.",
            seen=storage.uri,
            expected="a registry in a bucket, or the address under which the cluster reads it",
            remedy="set storage_prefix in the section 'deploy' of the recipe, for example pvc://models/registry",
        )
    return prefix
