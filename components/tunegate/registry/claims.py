"""Retraining under a lease: begun when something changed, promoted by the newest holder alone, given back at the end.

Why a late holder cannot promote. It reads the alias, then writes into its lease that it acts, then moves the alias from
the generation that it read. Whoever takes over before it acts has a newer token, and acting is refused. Whoever takes
over after that finds that it acts, waits until the lease runs out, and makes the alias's generation another one before
anything else: the late move fails on that generation. Both are compare-and-swaps of the storage; no clock is trusted.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tunegate.contracts.claim import Claim
from tunegate.contracts.errors import ConflictError
from tunegate.registry.aliases import current, outdate
from tunegate.registry.records import read_record
from tunegate.storage.interface import Storage
from tunegate.storage.lease import acquire, act, acted, read_lease, release

#: How long a lease is held at least when its holder promotes: one record and one pointer are written meanwhile.
PROMOTE_SECONDS = 600.0

Decision = Literal["changed", "unchanged", "held"]


@dataclass(frozen=True)
class Begun:
    """Whether to retrain.

    Attributes:
        decision: ``changed``: go on, with the claim; ``unchanged``: the alias's version was made from the same;
            ``held``: another retraining of the alias goes on.
        reason: for a person.
        claim: what to show at the promotion; None where nothing is to be done.
    """

    decision: Decision
    reason: str
    claim: Claim | None = None


def begin(
    storage: Storage,
    alias: str,
    *,
    made_from: str,
    holder: str,
    seconds: float,
    now: datetime.datetime | None = None,
) -> Begun:
    """Decides whether an alias's version must be made anew, and claims the work.

    Args:
        storage: the registry.
        alias: which alias.
        made_from: sha256 over what a version would be made from now.
        holder: names the run; asked again, it is given the same claim.
        seconds: how long the claim lasts when nobody gives it back.
        now: the time, for tests.
    """
    if made_now(storage, alias) == made_from:
        return _unchanged(alias)
    try:
        lease = acquire(storage, alias, holder, seconds=seconds, now=now)
    except ConflictError as error:
        return Begun("held", f"{error.failed} {error.seen}")
    if lease.took_over:
        outdate(storage, alias)
    if made_now(storage, alias) == made_from:  # another one ended between the two looks
        release(storage, alias, holder=holder)
        return _unchanged(alias)
    reason = "the one before died, or is late" if lease.took_over else "data, base or recipe changed"
    return Begun("changed", reason, Claim(alias, lease.token, made_from))


def end(storage: Storage, alias: str, *, holder: str) -> bool:
    """Gives a claim back, however the run ended; False where it had none, or was overtaken."""
    return release(storage, alias, holder=holder)


def made_now(storage: Storage, alias: str) -> str:
    """What the alias's version was made from; empty when that is not known. A rollback restores an earlier answer."""
    head = current(storage, alias)
    if head is None:
        return ""
    return (read_record(storage, head.restores) if head.restores else head).made_from


@contextlib.contextmanager
def promoting(storage: Storage, claim: Claim | None) -> Iterator[None]:
    """Moves an alias inside, as the newest holder of a claim; without a claim there is nobody to be overtaken by.

    The alias must have been read before.

    Raises:
        ConflictError: when somebody has a newer token. Nothing was moved.
    """
    if claim is None:
        yield
        return
    before = read_lease(storage, claim.lease)
    act(storage, claim.lease, claim.token, seconds=PROMOTE_SECONDS)
    yield
    # When its run has ended, nobody else gives it back. What raises leaves it acting: the move may still arrive.
    acted(storage, claim.lease, claim.token, released=before is not None and before.released)


def _unchanged(alias: str) -> Begun:
    return Begun("unchanged", f"the version of {alias} was made from this data, this base and this recipe")
