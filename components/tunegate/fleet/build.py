"""Builds a fleet: adapters fetched, verified, exported under the digest of their bytes, with what each must answer.

::

    fleet.json                    the base, each alias with its adapter, the room that vLLM needs for all
    adapters/<digest>/            an exported adapter; the digest is the name that it is served under
    probes/<alias>.json           what its own PEFT model answers

The base is not copied: it is named by its digest, and verified whenever it is loaded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.files import pretty_json, read_json_object, sha256_json
from tunegate.contracts.manifest import Manifest, input_digest
from tunegate.contracts.progress import say
from tunegate.contracts.vllm import SERVED_RANK, smallest_served
from tunegate.export.settings import ExportSettings
from tunegate.export.step import run as export
from tunegate.fleet.file import ProbeSettings
from tunegate.fleet.member import Given, given_adapter
from tunegate.fleet.probing import TASK, probes_of_adapter, questions_of
from tunegate.fleet.resolve import Member, Resolved
from tunegate.preflight.vllm_adapter import lint_adapter, refuse_adapter
from tunegate.registry.settings import SigningSettings
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import write_probes

KIND = "fleet"
FLEET_NAME = "fleet.json"
SCHEMA_VERSION = 1
ADAPTERS, PROBES = "adapters", "probes"


@dataclass(frozen=True)
class BuiltAdapter:
    """An adapter of a fleet that was built.

    Attributes:
        alias: what clients call it.
        adapter: content digest of the adapter as it was trained or given.
        served: content digest of what was exported of it; the name that it is served under.
        rank: of every module.
        version: whose part it is; empty for a folder, which no gate has judged.
        limits: how closely it must answer as its PEFT model.
        unchecked: the rules of vLLM that could not be checked, each with why.
    """

    alias: str
    adapter: str
    served: str
    rank: int
    version: str
    limits: Mapping[str, Any]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class BuiltFleet:
    """What a fleet serves: the digest of its base, its adapters, and the least room in vLLM that holds them all."""

    base: str
    adapters: tuple[BuiltAdapter, ...]
    max_loras: int
    max_lora_rank: int

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def build_fleet(resolved: Resolved, signing: SigningSettings, output: Path) -> Manifest:
    """Builds and writes the ``fleet`` artifact.

    Args:
        resolved: what it is made of; bytes of another digest are refused.
        signing: whose signature on a version counts.
        output: where the artifact will be.

    Raises:
        InputError: when an adapter does not fit the base, does not verify, or cannot be served as it was trained.
        GateRefused: when the gate did not pass a version, or judged its adapter on another base.
        ConflictError: when a folder changed since it was looked at.
    """
    parents = {"base": resolved.base_digest, **{f"adapters/{m.alias}": m.adapter for m in resolved.members}}
    settings = {"fleet": resolved.digest, "dtype": resolved.dtype, "probes": sha256_json(resolved.probes)}

    def build(folder: Path) -> None:
        base = Path(resolved.base)
        _refuse_other("base", base, resolved.base_digest)
        built: dict[str, BuiltAdapter] = {}
        for number, member in enumerate(resolved.members, start=1):
            say(TASK, f"{number}/{len(resolved.members)} {member.alias}: adapter {member.adapter[:12]}")
            with tempfile.TemporaryDirectory(prefix="fetched-", dir=folder) as scratch:
                given = given_adapter(resolved, member, signing, Path(scratch))
                built[member.alias] = _built(folder, resolved, member, given)
        document = {"schema_version": SCHEMA_VERSION, "fleet": resolved.digest}
        found = _fleet(resolved, tuple(built[alias] for alias in sorted(built)))
        (folder / FLEET_NAME).write_bytes(pretty_json({**document, **found.to_json()}))

    return produce(output, kind=KIND, parents=parents, settings=settings, build=build)


def read_built(folder: Path) -> BuiltFleet:
    """Reads the ``fleet.json`` of an artifact that was verified.

    Raises:
        ArtifactError: when it is not what :func:`build_fleet` writes.
    """
    try:
        document = read_json_object(folder / FLEET_NAME)
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}")
        adapters = tuple(
            BuiltAdapter(**{**each, "unchecked": tuple(each["unchecked"])}) for each in document["adapters"]
        )
        return BuiltFleet(str(document["base"]), adapters, int(document["max_loras"]), int(document["max_lora_rank"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} cannot be read as a fleet.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"{FLEET_NAME} of schema version {SCHEMA_VERSION}",
            remedy="build it again with `tunegate fleet build`",
        ) from error


def refuse_other_fleet(folder: Path, resolved: Resolved) -> None:
    """Holds what was built, and verified, against what it should be made of.

    Raises:
        ArtifactError: when it was made of something else.
    """
    built = read_built(folder)
    found = {each.alias: (each.adapter, each.version) for each in built.adapters}
    wanted = {member.alias: (member.adapter, member.version) for member in resolved.members}
    stated = read_json_object(folder / FLEET_NAME).get("fleet")
    if (stated, built.base, found) != (resolved.digest, resolved.base_digest, wanted):
        raise ArtifactError(
            f"{folder} holds another fleet.",
            seen=f"fleet {stated}",
            expected=resolved.digest,
            remedy="remove it: it is built again",
        )


def _built(folder: Path, resolved: Resolved, member: Member, given: Given) -> BuiltAdapter:
    base = Path(resolved.base)
    _refuse_other(f"adapter {member.alias}", given.folder, member.adapter)
    made = folder / ADAPTERS / "exported"
    served = export(ExportSettings(), base_model=base, adapter=given.folder, output=made).content_digest
    final = made.with_name(served)
    if final.exists():  # of another alias
        shutil.rmtree(made)
    else:
        made.rename(final)
    verdict = lint_adapter(final, base=base, max_lora_rank=SERVED_RANK)
    refuse_adapter(final, verdict)
    if resolved.probes is not None:
        _write_probes(folder, resolved, member, given, served)
    return BuiltAdapter(
        alias=member.alias,
        adapter=member.adapter,
        served=served,
        rank=int(read_json_object(final / "export.json")["rank"]),
        version=member.version,
        limits=asdict(given.limits or AnswerLimits(**resolved.limits)),
        unchecked=tuple(f"{each.rule}: {each.reason}" for each in verdict.linted.unchecked),
    )


def _write_probes(folder: Path, resolved: Resolved, member: Member, given: Given, served: str) -> None:
    base, settings = Path(resolved.base), ProbeSettings(**(resolved.probes or {}))
    dataset = Path(member.dataset) if member.dataset else None
    if dataset is not None:
        _refuse_other(f"data set of {member.alias}", dataset, member.dataset_digest)
    questions = questions_of(given.folder, base, settings, dataset=dataset, asked=given.probes)
    probes = probes_of_adapter(given.folder, base, questions, settings, served=served, dtype=resolved.dtype)
    (folder / PROBES).mkdir(exist_ok=True)
    write_probes(probes, folder / PROBES / f"{member.alias}.json")


def _fleet(resolved: Resolved, adapters: tuple[BuiltAdapter, ...]) -> BuiltFleet:
    room = smallest_served(max(adapter.rank for adapter in adapters)) or SERVED_RANK
    return BuiltFleet(resolved.base_digest, adapters, len({adapter.served for adapter in adapters}), room)


def _refuse_other(what: str, folder: Path, digest: str) -> None:
    """Refuses bytes that are not those that were resolved.

    Raises:
        ArtifactError: when an artifact does not verify.
        ConflictError: when it is another one now.
    """
    found = input_digest(folder)
    if found != digest:
        raise ConflictError(
            f"The {what} changed while the fleet was built.",
            seen=f"{found[:12]} in {folder}",
            expected=digest[:12],
            remedy="build the fleet again",
        )
