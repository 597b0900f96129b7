"""The ledger: how often each set of evaluation rows has judged.

Rows that judge again and again wear out: what is promoted is what did well on these very rows, by chance too, and who
trains learns from each verdict (C. Dwork et al., The reusable holdout, Science 349 (2015) 636–638). Each set of rows
has one object, ``ledger/<digest>.json``, appended to by compare-and-swap, so that no judgement is lost and none counts
twice.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.files import pretty_json
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_FOLDER = "ledger"
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: How often an append is tried: each time it loses, another judgement was appended.
_TRIES = 64


def count_judgement(storage: Storage, rows: str, judgement: str) -> int:
    """Appends a judgement to its rows' ledger, and says the how manieth it is.

    Args:
        storage: the registry's storage.
        rows: digest of the evaluation rows.
        judgement: what names the judgement. The same one again, a retry, keeps its number.

    Raises:
        ArtifactError: when the ledger cannot be read: a count that is lost would start again at 1.
        ConflictError: when others append without end.
    """
    key = f"{_FOLDER}/{rows}.json"
    for _ in range(_TRIES):
        blob = storage.read(key)
        known = [] if blob is None else _judgements(blob.data, rows, storage)
        if judgement in known:
            return known.index(judgement) + 1
        document = {"schema_version": SCHEMA_VERSION, "rows": rows, "judgements": [*known, judgement]}
        try:
            storage.write(key, pretty_json(document), if_generation_match=blob.generation if blob else 0)
        except ConflictError:
            continue
        return len(known) + 1
    raise ConflictError(
        f"The ledger of the rows {rows[:12]} in {storage.uri} could not be appended to.",
        seen=f"{_TRIES} tries, each after somebody else's",
        expected="a moment in which nobody else appends",
        remedy="run the gate again",
    )


def _judgements(data: bytes, rows: str, storage: Storage) -> list[str]:
    try:
        document: dict[str, Any] = json.loads(data)
        known, version = document["judgements"], document["schema_version"]
        if version != SCHEMA_VERSION or document["rows"] != rows or not isinstance(known, list):
            raise ValueError(f"schema version {version}, rows {document['rows']}")
        if not all(isinstance(name, str) and _DIGEST.fullmatch(name) for name in known):
            raise ValueError("a judgement that is no digest")
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"The ledger of the rows {rows[:12]} in {storage.uri} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a ledger of schema version {SCHEMA_VERSION}",
            remedy="somebody changed the registry: restore the ledger from a backup",
        ) from error
    return known
