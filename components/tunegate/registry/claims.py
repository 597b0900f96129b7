"""Retraining under a lease: begun when something changed, promoted by the newest holder alone, given back at the end.

Why a late holder cannot promote. It reads the alias, then writes into its lease that it acts, then moves the alias from
the generation that it read. Whoever takes over before it acts has a newer token, and acting is refused. Whoever takes
over after that finds that it acts, waits until the lease runs out, and makes the alias's generation another one before
anything else: the late move fails on that generation. That this is still to be done stands in the lease until it is
done: whoever comes after one that failed at it does it. All are the storage's compare-and-swaps; no clock is trusted.

What is not made again. What the alias's version was made from; what was rolled back, since a person took that version
away; and what the gate or a person refused, while the alias points where it did then: it would end in the same way.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tunegate.contracts.claim import Claim
from tunegate.contracts.errors import ConflictError
from tunegate.registry.aliases import outdate, read_current
from tunegate.registry.records import Record, chain, read_record
from tunegate.registry.refusals import read_refusal
from tunegate.storage.interface import Storage
from tunegate.storage.lease import acquire, act, acted, read_lease, release, settle

#: How long a lease is held at least when its holder promotes: one record and one pointer are written meanwhile.
PROMOTE_SECONDS = 600.0

#: How something is made that this says not to make.
_ANYWAY = "change data, base or recipe, or run the pipeline 'finetune', which makes it anyway"

Decision = Literal["changed", "unchanged", "rolled back", "refused", "held"]


@dataclass(frozen=True)
class Begun:
    """Whether to retrain.

    Attributes:
        decision: ``changed``: go on, with the claim; ``unchanged``: the alias's version was made from the same;
            ``rolled back``: a version that was made from the same was taken away; ``refused``: the gate or a person
            said no to one; ``held``: another retraining of the alias goes on.
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
    done = _done(storage, alias, made_from)
    if done is not None:
        return done
    try:
        lease = acquire(storage, alias, holder, seconds=seconds, now=now)
    except ConflictError as error:
        return Begun("held", f"{error.failed} {error.seen}")
    if lease.unsettled:
        outdate(storage, alias)
        settle(storage, alias, lease.token)
    done = _done(storage, alias, made_from)  # another one ended between the two looks
    if done is not None:
        release(storage, alias, holder=holder)
        return done
    reason = "the one before died, or is late" if lease.took_over else "data, base or recipe changed"
    return Begun("changed", reason, Claim(alias, lease.token, made_from))


def end(storage: Storage, alias: str, *, holder: str) -> bool:
    """Gives a claim back, however the run ended; False where it had none, or was overtaken."""
    return release(storage, alias, holder=holder)


def _done(storage: Storage, alias: str, made_from: str) -> Begun | None:
    """Why nothing is to be made from this; None when something is."""
    pointer, head = read_current(storage, alias)
    if head is not None:
        standing = read_record(storage, head.restores) if head.restores else head
        if standing.made_from == made_from:
            return Begun("unchanged", f"the version of {alias} was made from this data, this base and this recipe")
        if any(record.made_from == made_from for record in _rolled_back(storage, head)):
            return Begun(
                "rolled back", f"what was made of this for {alias} was rolled back ({head.created}): {_ANYWAY}"
            )
    refusal = read_refusal(storage, alias)
    if refusal is not None and (refusal.made_from, refusal.record) == (made_from, pointer.record):
        return Begun("refused", f"unchanged since {refusal.by} said no ({refusal.when}): {refusal.reason}; {_ANYWAY}")
    return None


def _rolled_back(storage: Storage, head: Record) -> Iterator[Record]:
    """The promotions that the rollback ``head`` took away, newest first; none where it is none."""
    if head.restores:
        for record in chain(storage, head.previous):
            if record.digest == head.restores:
                return
            yield record


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
