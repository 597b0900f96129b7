"""Records: why an alias points where it points. Each is immutable, named by its digest, and names the one before it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.files import canonical_json, sha256_json
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_FOLDER = "records"


@dataclass(frozen=True)
class Record:
    """One move of an alias.

    Attributes:
        alias: which alias.
        version: the version it points at from now on.
        previous: digest of the record before it; None for an alias's first.
        verdict: content digest of the verdict that allowed the version.
        attempt: names the attempt, so that a retry whose answer was lost finds that it succeeded.
        action: ``promote`` or ``rollback``.
        restores: for a rollback, the digest of the earlier record it goes back to; a further rollback starts there.
        note: a person's words.
        created: UTC time.
        approval: digest of the approval request that allowed it; empty where none was asked for.
        made_from: sha256 over what a retraining made the version from; empty where no retraining did.
    """

    alias: str
    version: str
    previous: str | None
    verdict: str
    attempt: str
    action: str
    restores: str | None = None
    note: str = ""
    created: str = ""
    schema_version: int = SCHEMA_VERSION
    approval: str = ""
    made_from: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as it is written; without approval and retraining by the name it had before there were such."""
        document = dataclasses.asdict(self)
        return {name: value for name, value in document.items() if value or name not in ("approval", "made_from")}

    @property
    def digest(self) -> str:
        """The record's name."""
        return sha256_json(self.to_json())


def write_record(storage: Storage, record: Record) -> str:
    """Writes a record and returns its digest; the same record again is kept."""
    try:
        storage.write(_key(record.digest), canonical_json(record.to_json()), if_generation_match=0)
    except ConflictError:
        read_record(storage, record.digest)
    return record.digest


def read_record(storage: Storage, digest: str) -> Record:
    """Reads a record.

    Raises:
        ArtifactError: when it is absent, malformed, or not what its name says.
    """
    blob = storage.read(_key(digest))
    if blob is None:
        raise _broken(storage, digest, "no such record")
    try:
        record = Record(**json.loads(blob.data))
    except (ValueError, TypeError) as error:
        raise _broken(storage, digest, f"{type(error).__name__}: {error}") from error
    if record.digest != digest or record.schema_version != SCHEMA_VERSION:
        raise _broken(storage, digest, f"a record whose digest is {record.digest}")
    return record


@functools.lru_cache(maxsize=4096)
def read_kept_record(storage: Storage, digest: str) -> Record:
    """:func:`read_record`, asked once by a process: what was verified under its digest cannot become another record."""
    return read_record(storage, digest)


def list_records(storage: Storage) -> list[str]:
    """The digests of all records, those that lost their race included."""
    return [key.removeprefix(f"{_FOLDER}/").removesuffix(".json") for key in storage.list(_FOLDER)]


def chain(storage: Storage, digest: str | None) -> Iterator[Record]:
    """The records from ``digest`` back to the first, newest first."""
    while digest is not None:
        record = read_record(storage, digest)
        yield record
        digest = record.previous


def _key(digest: str) -> str:
    return f"{_FOLDER}/{digest}.json"


def _broken(storage: Storage, digest: str, seen: str) -> ArtifactError:
    return ArtifactError(
        f"The history in {storage.uri} is broken at record {digest}.",
        seen=seen,
        expected=f"a record of schema version {SCHEMA_VERSION} with this digest",
        remedy="somebody changed the registry: restore the record from a backup",
    )
