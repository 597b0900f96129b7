"""A fleet file as digests: what exactly would be served, cheap enough to be asked every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError, SettingsError
from tunegate.contracts.files import content_files_below, sha256_file, sha256_json
from tunegate.contracts.manifest import MANIFEST_NAME, input_digest, read_manifest
from tunegate.fleet.file import Entry, Fleet
from tunegate.registry.aliases import current
from tunegate.registry.settings import SigningSettings
from tunegate.registry.versions import show_version
from tunegate.storage.interface import Storage

#: The part of a version that a fleet serves.
ADAPTER = "adapter"


@dataclass(frozen=True)
class Member:
    """An adapter, by its digest.

    Attributes:
        alias: what clients call it.
        adapter: content digest of the adapter as it was trained or given.
        folder: where it lies; empty when it is of a version.
        version: whose part it is; empty when it is a folder.
        dataset: the folder of its prompts; empty: those that the version was asked with.
        dataset_digest: of what prepare wrote there; empty without one.
    """

    alias: str
    adapter: str
    folder: str
    version: str
    dataset: str
    dataset_digest: str


@dataclass(frozen=True)
class Resolved:
    """All that decides what a fleet serves and how it is checked.

    Attributes:
        base: the folder of the base.
        base_digest: its content digest.
        registry: where the versions are.
        members: the adapters, by alias.
        probes: what each is asked, :class:`~tunegate.fleet.file.ProbeSettings`; None when nothing is.
        limits: :class:`~tunegate.serving.limits.AnswerLimits` of adapters that no policy speaks of.
        dtype: in what the server computes, and the PEFT models with it.
        signing: digest of whose signature counts: what was built under another rule is built again.
    """

    base: str
    base_digest: str
    registry: str
    members: tuple[Member, ...]
    probes: Mapping[str, Any] | None
    limits: Mapping[str, Any]
    dtype: str
    signing: str

    @property
    def digest(self) -> str:
        """Names the fleet: the same adapters, base and checks are the same fleet, wherever they lie."""
        document = self.to_json()
        for name in ("base", "registry"):
            del document[name]
        document["members"] = [
            {key: value for key, value in member.items() if key not in ("folder", "dataset")}
            for member in document["members"]
        ]
        return sha256_json(document)

    def to_json(self) -> dict[str, Any]:
        """For the process that builds it."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Resolved:
        """Reads what :meth:`to_json` gave."""
        members = tuple(Member(**member) for member in document["members"])
        return Resolved(**{**document, "members": members})


class Digests:
    """Content digests of folders that are looked at again and again: hashed anew only when a file changed.

    What decides is verified when it is loaded; here a size and a time are enough to notice that there is news.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Any, str]] = {}
        self._parts: dict[str, Mapping[str, str]] = {}

    def __call__(self, folder: Path) -> str:
        """The digest that an artifact states, or that of a plain folder's bytes.

        Raises:
            ArtifactError: when there is no such folder, or its manifest cannot be read.
        """
        if (folder / MANIFEST_NAME).is_file():
            return read_manifest(folder).content_digest
        stamp = _stamp(folder)
        known = self._known.get(folder)
        if known is None or known[0] != stamp:
            self._known[folder] = known = (stamp, input_digest(folder))
        return known[1]

    def of_version(self, storage: Storage, version: str) -> Mapping[str, str]:
        """The digests of a version's parts, read once: a version never changes."""
        if version not in self._parts:
            self._parts[version] = show_version(storage, version).parents
        return self._parts[version]


def _stamp(folder: Path) -> Any:
    found = [(name, (folder / name).stat()) for name in content_files_below(folder)] if folder.is_dir() else []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def resolve(
    fleet: Fleet, digests: Digests, storage: Storage | None, *, dtype: str, signing: SigningSettings, check: bool
) -> Resolved:
    """What a fleet is now.

    Args:
        fleet: what the file says.
        digests: remembers what was hashed.
        storage: the registry's; None when nothing is followed.
        dtype: in what the server computes.
        signing: whose signature on a version counts.
        check: whether the adapters are asked, so that each needs prompts.

    Raises:
        InputError: when a folder, an alias or prompts are missing.
    """
    if not (fleet.base / "config.json").is_file():
        raise InputError(
            "The fleet's base is no model.",
            seen=f"no config.json in {fleet.base}",
            expected="the folder of a model",
            remedy="correct base in the fleet file",
        )
    members = tuple(_member(entry, digests, storage, check=check) for entry in fleet.entries)
    probes = asdict(fleet.probes) if check else None
    return Resolved(
        base=str(fleet.base),
        base_digest=digests(fleet.base),
        registry=fleet.registry,
        members=members,
        probes=probes,
        limits=asdict(fleet.limits),
        dtype=dtype,
        signing=_rule(signing),
    )


def _rule(signing: SigningSettings) -> str:
    """A digest of whose signature counts; a key is its bytes, wherever they lie."""
    document = asdict(signing)
    if signing.public_key:
        document["public_key"] = sha256_file(Path(signing.public_key))
    return sha256_json(document)


def _member(entry: Entry, digests: Digests, storage: Storage | None, *, check: bool) -> Member:
    dataset, dataset_digest = "", ""
    if check and entry.dataset is not None:
        dataset, dataset_digest = str(entry.dataset), read_manifest(entry.dataset).content_digest
    if entry.folder is not None:
        if check and not dataset:
            raise SettingsError(
                f"There is nothing to ask the adapter {entry.alias}.",
                seen="no dataset in the fleet file",
                expected="prompts: its answers are held against those of its PEFT model",
                remedy="add 'dataset:', the folder that prepare wrote; or serve unchecked with --check none",
            )
        return Member(entry.alias, digests(entry.folder), str(entry.folder), "", dataset, dataset_digest)
    record = None if storage is None else current(storage, entry.follows)
    if storage is None or record is None:
        raise InputError(
            f"The fleet follows an alias that is not there: {entry.follows}.",
            seen="no such alias",
            expected=f"an alias of {storage.uri if storage else 'the registry'} that points at a promoted version",
            remedy=f"promote a version to it, or remove {entry.alias} from the fleet file",
        )
    parents = digests.of_version(storage, record.version)
    if ADAPTER not in parents:
        raise InputError(
            f"The version {record.version[:12]} that {entry.follows} points at has no adapter.",
            seen=", ".join(sorted(parents)),
            expected="a version that was trained as an adapter",
            remedy=f"serve it by itself with `tunegate deploy`, and remove {entry.alias} from the fleet file",
        )
    return Member(entry.alias, parents[ADAPTER], "", record.version, dataset, dataset_digest)
