"""The lease: one holder at a time, whoever dies; and a token that tells a late holder from the newest."""

from __future__ import annotations

import dataclasses
import datetime
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.storage.interface import Storage
from tunegate.storage.lease import Lease, acquire, act, acted, read_lease, release
from tunegate.storage.open import open_storage

NOON = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
SECONDS = 3600.0


@pytest.fixture(params=["folder", "bucket"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "registry"))
    return open_storage(request.getfixturevalue("gcs_bucket") + "/some/registry")


def take(storage: Storage, holder: str, at: datetime.datetime = NOON) -> Lease:
    return acquire(storage, "champion", holder, seconds=SECONDS, now=at)


def test_second_taker_is_told_who_holds_it_and_until_when(either: Storage) -> None:
    first = take(either, "run-1")
    with pytest.raises(ConflictError) as refused:
        take(either, "run-2", NOON + HOUR / 2)
    assert "run-1" in refused.value.seen and first.expires in refused.value.seen
    assert read_lease(either, "champion") == first


def test_tokens_only_grow_over_release_and_expiry(either: Storage) -> None:
    tokens = [take(either, "run-1").token]
    assert release(either, "champion", holder="run-1")
    tokens.append(take(either, "run-2").token)
    third = take(either, "run-3", NOON + 2 * HOUR)  # run-2 died
    tokens.append(third.token)
    assert tokens == [1, 2, 3]
    assert third.took_over


def test_lease_that_was_given_back_is_taken_over_from_nobody(either: Storage) -> None:
    take(either, "run-1")
    release(either, "champion", holder="run-1")
    assert not take(either, "run-2").took_over


def test_holder_that_asks_again_has_the_same_token(either: Storage) -> None:
    """A task that is tried again after its answer was lost."""
    first = take(either, "run-1")
    again = take(either, "run-1", NOON + HOUR / 2)
    assert again.token == first.token
    assert again.expires > first.expires
    with pytest.raises(ConflictError):
        take(either, "run-2", NOON + HOUR)


def test_dead_holders_lease_is_free_when_it_runs_out_and_not_before(either: Storage) -> None:
    take(either, "dead")
    with pytest.raises(ConflictError):
        take(either, "next", NOON + HOUR - datetime.timedelta(seconds=1))
    assert take(either, "next", NOON + HOUR).token == 2


def test_late_holder_is_refused_where_it_would_act(either: Storage) -> None:
    late = take(either, "late")
    take(either, "newest", NOON + 2 * HOUR)
    with pytest.raises(ConflictError, match="taken by somebody else") as refused:
        act(either, "champion", late.token, seconds=SECONDS, now=NOON + 3 * HOUR)
    assert "token 2 of newest" in refused.value.seen
    assert read_lease(either, "champion").holder == "newest"  # type: ignore[union-attr]


def test_late_holder_gives_back_nothing_that_is_not_its_own(either: Storage) -> None:
    late = take(either, "late")
    newest = take(either, "newest", NOON + 2 * HOUR)
    assert not release(either, "champion", holder="late")
    acted(either, "champion", late.token, released=True)
    assert read_lease(either, "champion") == newest


def test_newest_holder_acts_even_after_its_lease_ran_out_and_is_held_by_nobody_else_then(either: Storage) -> None:
    lease = take(either, "run-1")
    at = NOON + 5 * HOUR
    act(either, "champion", lease.token, seconds=SECONDS, now=at)
    with pytest.raises(ConflictError):
        take(either, "run-2", at + HOUR / 2)
    acted(either, "champion", lease.token, released=True)
    assert not take(either, "run-2", at + HOUR / 2).took_over


def test_whoever_follows_one_that_was_acting_knows_that_it_may_be_late(either: Storage) -> None:
    """Its pod is lost on a cut-off node: the run's end gives the lease back, and the pod may still wake."""
    lease = take(either, "run-1")
    act(either, "champion", lease.token, seconds=SECONDS, now=NOON)
    assert release(either, "champion", holder="run-1")
    assert take(either, "run-2").took_over


def _race(place: str, holder: str, barrier: Any, won: Any) -> None:
    storage = open_storage(place)
    barrier.wait()
    try:
        won.put((holder, acquire(storage, "champion", holder, seconds=SECONDS).token))
    except ConflictError:
        won.put((holder, 0))


def test_of_all_who_take_it_at_once_one_has_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(5):
        place = str(tmp_path / str(round_number))
        barrier, won = context.Barrier(8), context.Queue()
        racers = [context.Process(target=_race, args=(place, f"run-{n}", barrier, won)) for n in range(8)]
        for racer in racers:
            racer.start()
        found = dict(won.get(timeout=30) for _ in racers)
        for racer in racers:
            racer.join()
        winners = [holder for holder, token in found.items() if token]
        assert len(winners) == 1
        assert read_lease(open_storage(place), "champion").holder == winners[0]  # type: ignore[union-attr]


class _LosesAnswers:
    """A storage whose writes succeed, and say that they did not: as after a retry in the network."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        self._storage.write(key, data, if_generation_match=if_generation_match)
        return self._storage.write(key, data, if_generation_match=if_generation_match)


def test_answer_that_was_lost_after_success_is_success(either: Storage) -> None:
    loses: Any = _LosesAnswers(either)
    lease = take(loses, "run-1")
    act(loses, "champion", lease.token, seconds=SECONDS, now=NOON)
    assert release(loses, "champion", holder="run-1")


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"token": 1}', b'{"name": "champion", "token": "1", "holder": "a", "expires": "2026-01-01"}']
)
def test_lease_that_cannot_be_read_is_not_taken_for_a_free_one(text: bytes, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("leases/champion.json", text, if_generation_match=0)
    with pytest.raises(ArtifactError):
        take(storage, "run-1")


def test_lease_of_another_name_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    document = json.dumps(dataclasses.asdict(Lease("other", 1, "a", NOON.isoformat()))).encode()
    storage.write("leases/champion.json", document, if_generation_match=0)
    with pytest.raises(ArtifactError):
        read_lease(storage, "champion")
    with pytest.raises(InputError):
        acquire(storage, "../aliases/champion", "run-1", seconds=1)
