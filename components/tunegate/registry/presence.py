"""Whether a version is there: what arrives, and what is on its way out.

::

    arrivals/<version>.json   since when somebody brings it, or brought it last; written before anything is looked at
    removals/<version>.json   garbage collection's mark: the version is not there, and cannot be put there, until the
                              removal is finished

The marks make the two agree without a lock, because each writes before it reads:

- Who publishes writes the arrival, then asks for a removal. Who collects writes the removal, then asks for a recent
  arrival. One of them sees the other.
- Who moves an alias writes the record, then asks whether the version is there: for the removal first, then for the
  files. Who collects writes the removal, then reads the aliases and the recent records. One of them sees the other.

Who collects takes the mark away last, after the files and the arrival. So who finds no mark asks afterwards for what it
relies on (the files, or the arrival it wrote): a collection that ended meanwhile took that before its mark.

When both see each other, the version stays and whoever brings it or points at it is told to try again.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Literal

from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.files import pretty_json
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_ARRIVALS, _REMOVALS = "arrivals", "removals"

#: ``asking``: may still be given up. ``removing``: files may be gone already; it is finished, by whoever comes.
State = Literal["asking", "removing"]


@dataclass(frozen=True)
class Removal:
    """Garbage collection's mark on a version, as it was read or written.

    Attributes:
        version: which.
        state: how far it is.
        generation: of the mark; whoever writes it anew takes the removal over.
    """

    version: str
    state: State
    generation: int


def note_arrival(storage: Storage, version: str) -> None:
    """Says that somebody brings a version now, and refuses while it is on its way out.

    Raises:
        ConflictError: while garbage collection removes it.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    document = {"schema_version": SCHEMA_VERSION, "version": version, "arrived": now}
    key = f"{_ARRIVALS}/{version}.json"
    storage.write(key, pretty_json(document), if_generation_match=None)
    if read_removal(storage, version) is not None:
        raise ConflictError(
            f"Version {version} is being removed from {storage.uri}.",
            seen="the mark of a garbage collection that is running, or was killed",
            expected="a version that is there, or is not",
            remedy=f"try again in a minute; if it stays, finish the removal: tunegate registry gc {storage.uri} --yes",
        )
    if not storage.exists(key):  # a removal that ended just now took it along
        note_arrival(storage, version)


def read_arrival(storage: Storage, version: str) -> datetime.datetime | None:
    """When somebody brought a version last; None when nobody did, or before such notes were taken."""
    blob = storage.read(f"{_ARRIVALS}/{version}.json")
    if blob is None:
        return None
    try:
        return datetime.datetime.fromisoformat(json.loads(blob.data)["arrived"])
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(storage, f"{_ARRIVALS}/{version}.json", error) from error


def read_removal(storage: Storage, version: str) -> Removal | None:
    """Garbage collection's mark on a version, None when there is none."""
    blob = storage.read(f"{_REMOVALS}/{version}.json")
    if blob is None:
        return None
    try:
        state = json.loads(blob.data)["state"]
        if state not in ("asking", "removing"):
            raise ValueError(f"state {state!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(storage, f"{_REMOVALS}/{version}.json", error) from error
    return Removal(version, state, blob.generation)


def list_removals(storage: Storage) -> set[str]:
    """The versions that are marked."""
    return {key.removeprefix(f"{_REMOVALS}/").removesuffix(".json") for key in storage.list(_REMOVALS)}


def mark(storage: Storage, version: str, state: State, *, over: Removal | None) -> Removal:
    """Writes the mark.

    Args:
        over: the mark as it was read; None: there must be none.

    Raises:
        ConflictError: when somebody else marked it meanwhile.
    """
    document = pretty_json({"schema_version": SCHEMA_VERSION, "version": version, "state": state})
    key, generation = f"{_REMOVALS}/{version}.json", over.generation if over else 0
    return Removal(version, state, storage.write(key, document, if_generation_match=generation))


def unmark(storage: Storage, removal: Removal) -> None:
    """Takes a mark away, when it is still the one that was written.

    Raises:
        ConflictError: when somebody else took the removal over.
    """
    storage.delete(f"{_REMOVALS}/{removal.version}.json", if_generation_match=removal.generation)


def forget_arrival(storage: Storage, version: str) -> None:
    """Removes the note of an arrival, with the version that it speaks of."""
    storage.delete(f"{_ARRIVALS}/{version}.json")


def _broken(storage: Storage, key: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{key} in {storage.uri} cannot be read.",
        seen=f"{type(error).__name__}: {error}",
        expected="a document that tunegate wrote, unchanged",
        remedy="somebody changed the registry: restore the document from a backup",
    )
