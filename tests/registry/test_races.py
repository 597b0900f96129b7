"""Many processes at one alias: one winner a generation, a linear history, nothing lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

from tunegate.contracts.errors import ConflictError
from tunegate.registry.aliases import history, promote, read_alias
from tunegate.registry.versions import publish
from tunegate.storage.interface import Storage

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def honest(either: Storage) -> Storage:
    """A storage that was seen to refuse a stale write: a race on one that does not would prove nothing."""
    first = either.write("probe", b"one", if_generation_match=0)
    either.write("probe", b"two", if_generation_match=first)
    for stale in (0, first):
        try:
            either.write("probe", b"stale", if_generation_match=stale)
        except ConflictError:
            continue
        pytest.exit(f"{either.uri} accepts a stale write: no race on it can be judged", returncode=3)
    return either


def _race(storage: Storage, version: str, worker: int, rounds: int, barrier: Any, wins: Any) -> None:
    for number in range(rounds):
        state = read_alias(storage, "champion")
        barrier.wait()
        try:
            promote(storage, state, version, verdict="v", attempt=f"{worker}/{number}")
            wins.put((number, worker))
        except ConflictError:
            pass
        barrier.wait()


@pytest.mark.parametrize(
    ("workers", "rounds"), [pytest.param(8, 5), pytest.param(32, 100, marks=pytest.mark.slow)], ids=["small", "full"]
)
def test_of_all_who_promote_at_once_one_wins_each_generation_and_history_is_linear(
    honest: Storage, parts: Callable[[str], Any], workers: int, rounds: int
) -> None:
    version = publish(honest, parts("a"))
    barrier, wins = FORK.Barrier(workers, timeout=300), FORK.Queue()
    processes = [
        FORK.Process(target=_race, args=(honest, version, worker, rounds, barrier, wins)) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    won = sorted(wins.get(timeout=300) for _ in range(rounds))
    for process in processes:
        process.join()
    assert wins.empty()
    assert [number for number, _ in won] == list(range(rounds))
    records = history(honest, "champion")
    assert [record.attempt for record in reversed(records)] == [f"{worker}/{number}" for number, worker in won]
    print(f"\n{honest.uri}: {workers} processes, {rounds} rounds, {len(records)} records in one line")
