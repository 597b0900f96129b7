"""The last no to a retraining: by the gate or by a person. What is made from the same would be refused again.

::

    leases/refused/<alias>.json     what was refused, by whom, and where the alias pointed

A run that broke leaves none: it is tried again.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass

from tunegate.contracts.claim import Claim
from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.files import pretty_json
from tunegate.registry.aliases import check_alias_name, read_alias
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_FOLDER = "leases/refused"


@dataclass(frozen=True)
class Refusal:
    """A retraining that ended with a no.

    Attributes:
        alias: which alias was not moved.
        token: of the claim under which it was made: an older one does not replace a newer.
        made_from: sha256 over what it was made from.
        record: where the alias pointed; None: nowhere yet. What is compared with another champion may pass.
        by: who said no.
        reason: in the words of whoever did.
        when: UTC time.
    """

    alias: str
    token: int
    made_from: str
    record: str | None
    by: str
    reason: str
    when: str
    schema_version: int = SCHEMA_VERSION


def note_refusal(storage: Storage, claim: Claim, *, by: str, reason: str) -> None:
    """Keeps that a retraining was refused.

    Args:
        storage: the registry.
        claim: that of the retraining.
        by: who said no.
        reason: why.

    Raises:
        ConflictError: when another one was written at this moment.
    """
    alias = claim.lease
    before, generation = _read(storage, alias)
    if before is not None and before.token >= claim.token:
        return  # the same step, tried again, or a late one
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    refusal = Refusal(alias, claim.token, claim.made_from, read_alias(storage, alias).record, by, reason, when)
    try:
        storage.write(_key(alias), pretty_json(dataclasses.asdict(refusal)), if_generation_match=generation)
    except ConflictError:
        found, _ = _read(storage, alias)
        if found is None or found.token < claim.token:
            raise


def read_refusal(storage: Storage, alias: str) -> Refusal | None:
    """The last no to a retraining of an alias; None where there was none.

    Raises:
        ArtifactError: when its object is malformed.
    """
    return _read(storage, alias)[0]


def _read(storage: Storage, alias: str) -> tuple[Refusal | None, int]:
    blob = storage.read(_key(alias))
    if blob is None:
        return None, 0
    try:
        refusal = Refusal(**json.loads(blob.data))
        if refusal.schema_version != SCHEMA_VERSION or refusal.alias != alias or type(refusal.token) is not int:
            raise ValueError(f"schema version {refusal.schema_version}, alias {refusal.alias!r}")
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"What is known of the last refused retraining of {alias} in {storage.uri} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a refusal of schema version {SCHEMA_VERSION}",
            remedy=f"somebody changed the storage: delete {_key(alias)}; the next retraining is made anew then",
        ) from error
    return refusal, blob.generation


def _key(alias: str) -> str:
    return f"{_FOLDER}/{check_alias_name(alias)}.json"
