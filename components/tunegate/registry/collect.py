"""Garbage collection: removes versions that nothing needs. Why it cannot take what somebody needs: presence.py.

Kept is what an alias points at, what its last records name, what its next rollbacks would go back to, what a request
for approval waits for, and whatever was brought or named by a record within the grace period: an upload that is still
running, a promotion that is about to move an alias. The grace period is the one thing that rests on clocks: it must be
longer than any upload, and than the clocks of two machines differ.

A removal that was killed is finished by the next one, and while its mark is there the version is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tunegate.contracts.errors import ArtifactError, ConflictError
from tunegate.contracts.manifest import MANIFEST_NAME
from tunegate.registry.aliases import goes_back_to, history, list_aliases
from tunegate.registry.approvals import versions_asked_for
from tunegate.registry.presence import (
    Removal,
    forget_arrival,
    list_removals,
    mark,
    read_arrival,
    read_removal,
    unmark,
)
from tunegate.registry.records import Record, list_records, read_kept_record
from tunegate.registry.versions import show_version, version_folder, version_folders
from tunegate.storage.interface import Storage

#: How many records of each alias keep their versions, and how many rollbacks stay possible.
KEEP = 5

GRACE_DAYS = 7.0

Fate = Literal["kept", "remove", "removed"]


@dataclass(frozen=True)
class Judgement:
    """What becomes of a version.

    Attributes:
        version: its digest.
        fate: ``kept``; ``remove``: it would be, in a dry run; ``removed``.
        reason: what needs it, or why nothing does.
        size_bytes: of its files; None where its manifest is not there or cannot be read.
    """

    version: str
    fate: Fate
    reason: str
    size_bytes: int | None


@dataclass(frozen=True)
class Rules:
    """What is kept. See :data:`KEEP` and :data:`GRACE_DAYS`."""

    keep: int = KEEP
    grace: datetime.timedelta = datetime.timedelta(days=GRACE_DAYS)


def collect(storage: Storage, rules: Rules, *, now: datetime.datetime, remove: bool) -> list[Judgement]:
    """Judges every version, and removes what nothing needs.

    Args:
        storage: the registry's storage.
        rules: what is kept.
        now: the time.
        remove: False: nothing is changed.

    Raises:
        ArtifactError: when an alias or a record cannot be read: then nothing is removed.
    """
    found = {version: read_removal(storage, version) for version in list_removals(storage)}
    left = {version: removal for version, removal in found.items() if removal is not None}  # by killed collections
    versions = sorted(version_folders(storage) | left.keys())
    needed = _needed(storage, rules, now, versions)
    judged = [_judged(storage, version, needed, left.get(version)) for version in versions]
    if not remove:
        return judged
    marks = left | _marked(storage, [judgement.version for judgement in judged if judgement.fate == "remove"], left)
    needed = _needed(storage, rules, now, versions)  # asked again, now that the marks are there
    return [
        _removed(storage, judgement, marks[judgement.version], needed) if judgement.version in marks else judgement
        for judgement in judged
    ]


def _judged(storage: Storage, version: str, needed: Mapping[str, str], left: Removal | None) -> Judgement:
    size = _size(storage, version)
    if left and left.state == "removing":  # files may be gone: it can only be finished
        return Judgement(version, "remove", "its removal was begun", size)
    fate: Fate = "kept" if version in needed else "remove"
    return Judgement(version, fate, needed.get(version, "nothing needs it"), size)


def _marked(storage: Storage, versions: list[str], left: Mapping[str, Removal]) -> dict[str, Removal]:
    """Marks each version; one that another collection marks at the same moment is left to that."""
    marks: dict[str, Removal] = {}
    for version in versions:
        over = left.get(version)
        with contextlib.suppress(ConflictError):
            marks[version] = over if over and over.state == "removing" else mark(storage, version, "asking", over=over)
    return marks


def _removed(storage: Storage, judgement: Judgement, removal: Removal, needed: dict[str, str]) -> Judgement:
    """Removes one version, or gives it back when somebody needs it by now."""
    version = judgement.version
    try:
        if removal.state == "asking":
            if version in needed:
                unmark(storage, removal)
                return dataclasses.replace(judgement, fate="kept", reason=needed[version])
            removal = mark(storage, version, "removing", over=removal)
        folder = version_folder(version)
        storage.remove_folder(folder, first=MANIFEST_NAME, stamps=storage.stamps(folder))
        forget_arrival(storage, version)
        unmark(storage, removal)
    except ConflictError:
        return dataclasses.replace(judgement, fate="kept", reason="left to another collection, which took it over")
    return dataclasses.replace(judgement, fate="removed")


def _needed(storage: Storage, rules: Rules, now: datetime.datetime, versions: list[str]) -> dict[str, str]:
    """Version → what needs it."""
    needed: dict[str, str] = {}
    for version in versions:
        arrived = read_arrival(storage, version)
        if arrived is not None and now - arrived < rules.grace:
            needed[version] = f"it was brought at {arrived.isoformat(timespec='seconds')}"
    for record in (read_kept_record(storage, digest) for digest in list_records(storage)):
        if now - datetime.datetime.fromisoformat(record.created) < rules.grace:
            needed[record.version] = f"a record of {record.alias} of {record.created} names it"
    for version in versions_asked_for(storage, now):
        needed[version] = "a request for approval waits for it"
    for name in list_aliases(storage):
        records = history(storage, name)
        for record in itertools.islice(_rollbacks(storage, records[0]) if records else (), rules.keep):
            needed[record.version] = f"a rollback of {name} would go back to it"
        for record in records[: rules.keep]:
            needed[record.version] = f"one of the last {rules.keep} records of {name} names it"
        needed |= {record.version: f"{name} points at it" for record in records[:1]}
    return needed


def _rollbacks(storage: Storage, head: Record) -> Iterator[Record]:
    """What one rollback after the other would go back to."""
    target = goes_back_to(storage, head)
    while target is not None:
        yield target
        target = goes_back_to(storage, target)


def _size(storage: Storage, version: str) -> int | None:
    try:
        return sum(entry.size_bytes for entry in show_version(storage, version).files)
    except ArtifactError:  # an upload that never finished, or a manifest that somebody changed
        return None
