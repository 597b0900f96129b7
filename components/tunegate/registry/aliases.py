"""Aliases: one small object each, moved by compare-and-swap after its record was written.

History is the chain of records that starts where the alias points, so the two cannot disagree. A record that lost its
race is left over and reachable from nowhere.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import pretty_json
from tunegate.registry.records import Record, chain, read_kept_record, read_record, write_record
from tunegate.registry.versions import has_version
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_FOLDER = "aliases"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Alias:
    """An alias as it was read.

    Attributes:
        name: its name.
        record: digest of the record it points at; None when there is no such alias yet.
        generation: the pointer's generation; 0 when there is none, and more where only its generation was moved.
    """

    name: str
    record: str | None
    generation: int


@dataclass(frozen=True)
class Move:
    """A move that is done.

    Attributes:
        record: what was written, now or by an earlier try of the same attempt.
        moved: False when an earlier try of the same attempt had done it.
    """

    record: Record
    moved: bool


def check_alias_name(name: str) -> str:
    """``name``, when it can be an alias.

    Raises:
        InputError: for anything but lower-case letters, digits, '.', '_' and '-', at most 63.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The alias {name!r} is not allowed.",
            seen=repr(name),
            expected="1 to 63 lower-case letters, digits, '.', '_' or '-', a letter or digit first and last",
            remedy="choose a name such as 'champion' or 'tool-calls.prod'",
        )
    return name


def read_alias(storage: Storage, name: str) -> Alias:
    """The alias as it is now.

    Raises:
        ArtifactError: when its object is malformed.
    """
    blob = storage.read(_key(name))
    if blob is None:
        return Alias(name, None, 0)
    try:
        document = json.loads(blob.data)
        record, of, version = document["record"], document["alias"], document["schema_version"]
        if not (record is None or isinstance(record, str)) or of != name or version != SCHEMA_VERSION:
            raise ValueError(f"alias {of!r}, record {record!r}, schema version {version!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"The alias {name} in {storage.uri} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"an alias of schema version {SCHEMA_VERSION}",
            remedy="somebody changed the registry: restore the alias from a backup",
        ) from error
    return Alias(name, record, blob.generation)


def list_aliases(storage: Storage) -> list[str]:
    """The names of all aliases."""
    return [key.removeprefix(f"{_FOLDER}/").removesuffix(".json") for key in storage.list(_FOLDER)]


def current(storage: Storage, name: str) -> Record | None:
    """The record an alias points at, None when there is no such alias."""
    return read_current(storage, name)[1]


def read_current(storage: Storage, name: str) -> tuple[Alias, Record | None]:
    """The alias and the record that it points at, read once: None when there is no such alias."""
    alias = read_alias(storage, name)
    return alias, None if alias.record is None else _own(read_record(storage, alias.record), name, storage)


def history(storage: Storage, name: str) -> list[Record]:
    """Every move of an alias, newest first."""
    return [_own(record, name, storage) for record in chain(storage, read_alias(storage, name).record)]


def promote(
    storage: Storage,
    alias: Alias,
    version: str,
    *,
    verdict: str,
    attempt: str,
    note: str = "",
    approval: str = "",
    made_from: str = "",
    guard: AbstractContextManager[None] | None = None,
) -> Move:
    """Moves an alias to a version.

    Args:
        storage: the registry's storage.
        alias: as it was read when the decision was made; a move since then is a conflict.
        version: a version that was published.
        verdict: content digest of the verdict that allowed it.
        attempt: what names this attempt; it is carried out at most once, however often it is tried.
        note: a person's words.
        approval: digest of the approval request that was granted, where one was asked for.
        made_from: sha256 over what the version was made from, where a retraining made it.
        guard: entered around the move, after the alias was read: what it raises, moves nothing.

    Raises:
        ConflictError: when the alias moved since ``alias`` was read.
        InputError: when the version is not in the registry.
    """
    done = _earlier(storage, alias.name, attempt)
    if done:
        return Move(done, moved=False)
    _require_version(storage, version)
    record = Record(
        alias=check_alias_name(alias.name),
        version=version,
        previous=alias.record,
        verdict=verdict,
        attempt=attempt,
        action="promote",
        note=note,
        created=_now(),
        approval=approval,
        made_from=made_from,
    )
    with guard or contextlib.nullcontext():
        return _moved(storage, alias, record)


def rollback(storage: Storage, alias: Alias, *, note: str = "", attempt: str = "") -> Move:
    """Points an alias at the version it pointed at before: one record and one pointer, no data.

    A second rollback goes one further back. Arguments and errors are those of :func:`promote`.

    Raises:
        InputError: when there is nothing to go back to, or its version is gone.
    """
    attempt = attempt or uuid.uuid4().hex
    done = _earlier(storage, alias.name, attempt)
    if done:
        return Move(done, moved=False)
    head = read_record(storage, alias.record) if alias.record else None
    target = goes_back_to(storage, head) if head else None
    if target is None:
        raise InputError(
            f"The alias {alias.name} has nothing to go back to.",
            seen="its first version" if head else "no such alias",
            expected="an alias that was moved at least twice",
            remedy="look at the alias's history",
        )
    _require_version(storage, target.version)
    record = Record(
        alias=check_alias_name(alias.name),
        version=target.version,
        previous=alias.record,
        verdict=target.verdict,
        attempt=attempt,
        action="rollback",
        restores=target.digest,
        note=note,
        created=_now(),
    )
    return _moved(storage, alias, record)


def outdate(storage: Storage, name: str) -> None:
    """Makes every move of an alias fail that was decided before: its pointer is written again, and points as before."""
    alias = read_alias(storage, name)
    with contextlib.suppress(ConflictError):  # somebody moved it at this moment, which does the same
        storage.write(_key(name), _pointer(name, alias.record), if_generation_match=alias.generation)


def goes_back_to(storage: Storage, head: Record) -> Record | None:
    """The promotion that a rollback from ``head`` goes back to; None from an alias's first."""
    effective = read_record(storage, head.restores) if head.restores else head
    if effective.previous is None:
        return None
    target = read_record(storage, effective.previous)
    return read_record(storage, target.restores) if target.restores else target


def _moved(storage: Storage, alias: Alias, record: Record) -> Move:
    digest = write_record(storage, record)
    _require_version(storage, record.version)  # again: garbage collection looks for the record that is there now
    try:
        storage.write(_key(alias.name), _pointer(alias.name, digest), if_generation_match=alias.generation)
    except ConflictError:
        done = _earlier(storage, alias.name, record.attempt)  # an answer that was lost after success is success
        if done:
            return Move(done, moved=False)
        raise
    return Move(record, moved=True)


def _pointer(name: str, record: str | None) -> bytes:
    return pretty_json({"schema_version": SCHEMA_VERSION, "alias": name, "record": record})


def _earlier(storage: Storage, name: str, attempt: str) -> Record | None:
    digest = read_alias(storage, name).record
    while digest is not None:
        record = _own(read_kept_record(storage, digest), name, storage)
        if record.attempt == attempt:
            return record
        digest = record.previous
    return None


def _require_version(storage: Storage, version: str) -> None:
    if not has_version(storage, version):
        raise InputError(
            f"Version {version} is not in {storage.uri}.",
            seen="no such version, or an incomplete one",
            expected="a version that was published",
            remedy="publish it first, or choose another version",
        )


def _own(record: Record, name: str, storage: Storage) -> Record:
    if record.alias != name:
        raise ArtifactError(
            f"The alias {name} in {storage.uri} points at a record of another alias.",
            seen=f"record {record.digest} of {record.alias!r}",
            expected=f"a record of {name!r}",
            remedy="somebody changed the registry: restore the alias from a backup",
        )
    return record


def _key(name: str) -> str:
    return f"{_FOLDER}/{check_alias_name(name)}.json"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
