"""A lock in a storage that runs out: one holder at a time, and a token by which a late holder is told from the newest.

A holder that dies never gives a lock back, so a lock must run out; one that was merely paused does not notice that. So
each new holder is given a number greater than every one before, and what the lock protects refuses an older one (a
fencing token: Kleppmann, "How to do distributed locking", 2016). Clocks decide only when another may take over. Whether
a holder is the newest is decided by the storage's compare-and-swap alone.

::

    leases/<name>.json      token, holder, until when, whether it was given back, what its holder owes
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
from dataclasses import dataclass

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import pretty_json
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
_FOLDER = "leases"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Lease:
    """A lease as it was read or written.

    Attributes:
        name: of what.
        token: the number of this holding; every later holder has a greater one.
        holder: who; the same holder that asks again is given the same token.
        expires: UTC time from which another may take over.
        released: whether it was given back.
        acting: whether the holder began to change what the lease protects, and did not say that it ended.
        took_over: whether the holder before may still be there, and late: it gave nothing back, was acting, or had not
            settled what it owed itself.
        unsettled: whether nobody has taken precautions yet against a holder before that may be late: see
            :func:`settle`. It is handed on from holder to holder until somebody does.
    """

    name: str
    token: int
    holder: str
    expires: str
    released: bool = False
    acting: bool = False
    took_over: bool = False
    unsettled: bool = False
    schema_version: int = SCHEMA_VERSION

    def held(self, now: datetime.datetime) -> bool:
        """Whether nobody else may take it yet."""
        return not self.released and now < datetime.datetime.fromisoformat(self.expires)


def acquire(storage: Storage, name: str, holder: str, *, seconds: float, now: datetime.datetime | None = None) -> Lease:
    """Takes a lease that is free, given back or run out; whoever holds it already holds it longer.

    Args:
        storage: where it lies.
        name: of what: lower-case letters, digits, '.', '_' and '-', at most 63.
        holder: names the taker, so that a retry whose answer was lost finds that it succeeded.
        seconds: how long it is held.
        now: the time, for tests.

    Raises:
        ConflictError: when somebody else holds it, or took it at this moment.
    """
    now = now or _now()
    before, generation = _read(storage, name)
    if before is not None and before.held(now) and before.holder != holder:
        raise _held(before)
    if before is not None and before.holder == holder and not before.released:
        lease = dataclasses.replace(before, expires=_later(now, seconds))
    else:
        token = before.token + 1 if before else 1
        late = before is not None and (before.acting or not before.released or before.unsettled)
        lease = Lease(name, token, holder, _later(now, seconds), took_over=late, unsettled=late)
    try:
        _write(storage, lease, generation)
    except ConflictError:
        found, _ = _read(storage, name)  # an answer that was lost after success is success
        if found is not None and found.holder == holder and found.token == lease.token:
            return found
        raise
    return lease


def settle(storage: Storage, name: str, token: int) -> None:
    """After precautions against a late holder: from here on nobody owes them.

    Raises:
        ConflictError: when somebody has a newer token, who owes them as well.
    """
    found, generation = _read(storage, name)
    if found is None or found.token != token:
        raise overtaken(name, token, found)
    if not found.unsettled:
        return
    lease = dataclasses.replace(found, unsettled=False)
    try:
        _write(storage, lease, generation)
    except ConflictError as error:
        newest, _ = _read(storage, name)
        if newest is None or newest.token != token:
            raise overtaken(name, token, newest) from error
        if newest.unsettled:
            raise


def act(storage: Storage, name: str, token: int, *, seconds: float, now: datetime.datetime | None = None) -> Lease:
    """Before what the lease protects is changed, by whoever has its newest token, even when it ran out or was returned.

    From then until it runs out nobody else is given it, and whoever takes it then knows that this holder may be late.

    Raises:
        ConflictError: when somebody has a newer token: whoever asks was overtaken, and must change nothing.
    """
    now = now or _now()
    found, generation = _read(storage, name)
    if found is None or found.token != token:
        raise overtaken(name, token, found)
    until = max(found.expires, _later(now, seconds), key=datetime.datetime.fromisoformat)
    lease = dataclasses.replace(found, expires=until, released=False, acting=True)
    try:
        _write(storage, lease, generation)
    except ConflictError as error:
        newest, _ = _read(storage, name)
        if newest is None or newest.token != token:
            raise overtaken(name, token, newest) from error
        if newest != lease:
            raise
    return lease


def acted(storage: Storage, name: str, token: int, *, released: bool) -> None:
    """After the change: nobody needs to fear that it comes late.

    Args:
        storage, name, token: as for :func:`act`.
        released: whether the lease is given back as well.
    """
    found, generation = _read(storage, name)
    if found is None or found.token != token:
        return
    with contextlib.suppress(ConflictError):  # somebody took it over, and has taken precautions by now
        _write(storage, dataclasses.replace(found, acting=False, released=found.released or released), generation)


def release(storage: Storage, name: str, *, holder: str) -> bool:
    """Gives a lease back; one that somebody else holds by now is left alone. That it was acting, or owes, is kept.

    Returns:
        Whether this holder had it.
    """
    found, generation = _read(storage, name)
    if found is None or found.holder != holder or found.released:
        return False
    try:
        _write(storage, dataclasses.replace(found, released=True), generation)
    except ConflictError:
        newest, _ = _read(storage, name)
        return newest is not None and newest.holder == holder and newest.released
    return True


def read_lease(storage: Storage, name: str) -> Lease | None:
    """A lease as it is now; None where there never was one.

    Raises:
        ArtifactError: when its object is malformed.
    """
    return _read(storage, name)[0]


def overtaken(name: str, token: int, newest: Lease | None) -> ConflictError:
    """The error of whoever comes late."""
    return ConflictError(
        f"The lease {name} was taken by somebody else since: nothing was changed.",
        seen=f"token {newest.token} of {newest.holder}" if newest else "no lease",
        expected=f"token {token}, as when the work began",
        remedy="leave it: the newer holder does the work anew; its run says how it ended",
    )


def _held(lease: Lease) -> ConflictError:
    return ConflictError(
        f"The lease {lease.name} is held by somebody else.",
        seen=f"{lease.holder}, token {lease.token}, until {lease.expires}",
        expected="a lease that is free, given back or run out",
        remedy="wait until it ends; what a dead holder held is free after that time",
    )


def _read(storage: Storage, name: str) -> tuple[Lease | None, int]:
    blob = storage.read(_key(name))
    if blob is None:
        return None, 0
    try:
        lease = Lease(**json.loads(blob.data))
        datetime.datetime.fromisoformat(lease.expires)
        if lease.schema_version != SCHEMA_VERSION or lease.name != name or type(lease.token) is not int:
            raise ValueError(f"schema version {lease.schema_version}, name {lease.name!r}, token {lease.token!r}")
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"The lease {name} in {storage.uri} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a lease of schema version {SCHEMA_VERSION}",
            remedy="somebody changed the storage: restore the lease from a backup; without it, tokens begin anew",
        ) from error
    return lease, blob.generation


def _write(storage: Storage, lease: Lease, generation: int) -> None:
    storage.write(_key(lease.name), pretty_json(dataclasses.asdict(lease)), if_generation_match=generation)


def _key(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The lease {name!r} is not allowed.",
            seen=repr(name),
            expected="1 to 63 lower-case letters, digits, '.', '_' or '-', a letter or digit first and last",
            remedy="choose another name",
        )
    return f"{_FOLDER}/{name}.json"


def _later(now: datetime.datetime, seconds: float) -> str:
    return (now + datetime.timedelta(seconds=seconds)).isoformat()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
