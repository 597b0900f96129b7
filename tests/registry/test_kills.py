"""SIGKILL at random moments of upload, promotion and rollback: old or new, absent or complete, and a retry finishes."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.registry.aliases import current, history, promote, read_alias, rollback
from tunegate.registry.versions import Part, has_version, list_versions, publish, verify_version
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

FORK = multiprocessing.get_context("fork")


def _brought(storage: Storage, parts: Mapping[str, Part], attempt: str) -> None:
    version = publish(storage, parts)
    promote(storage, read_alias(storage, "champion"), version, verdict="v", attempt=attempt)


def _back(storage: Storage, attempt: str) -> None:
    rollback(storage, read_alias(storage, "champion"), attempt=attempt)


def _refuse_incomplete(storage: Storage, version: str) -> None:
    """A version is absent for everybody, or complete."""
    if has_version(storage, version):
        verify_version(storage, version)
        return
    assert version not in list_versions(storage)
    with pytest.raises(ArtifactError, match="no version"):
        verify_version(storage, version)


def _attempt(work: Callable[..., None], arguments: tuple[Any, ...], kill_after: float | None) -> tuple[bool, float]:
    """Runs one attempt in a process; whether it was killed, and how long it took."""
    began = time.perf_counter()
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode == -9, time.perf_counter() - began


@pytest.mark.parametrize("kills", [pytest.param(6), pytest.param(100, marks=pytest.mark.slow)], ids=["small", "full"])
def test_killed_at_any_moment_everything_is_old_or_new_and_a_retry_finishes(
    either: Storage, parts: Callable[[str], Any], kills: int, tmp_path: Path
) -> None:
    """The full size kills a hundred times on each storage."""
    rng, hit, number = random.Random(7), 0, 0
    beside = open_storage(str(tmp_path / "beside"))  # says what the version is called before it is there
    _brought(either, parts("first"), "first")
    _, seconds = _attempt(_brought, (either, parts("second"), "second"), None)
    while hit < kills:
        number += 1
        attempt, goes_back = f"attempt-{number}", number % 3 == 0
        before = current(either, "champion")
        assert before is not None
        made = None if goes_back else parts(attempt)
        coming = publish(beside, made) if made else before.version
        work, arguments = (_back, (either, attempt)) if goes_back else (_brought, (either, made, attempt))
        while True:
            killed, _ = _attempt(work, arguments, rng.uniform(0, seconds) if hit < kills else None)
            hit += killed
            now = current(either, "champion")
            assert now is not None
            assert now.digest == before.digest or (now.attempt, now.previous) == (attempt, before.digest)
            assert has_version(either, now.version)
            verify_version(either, now.version)
            _refuse_incomplete(either, coming)
            if not killed:
                break
        assert now.attempt == attempt
        assert has_version(either, coming)
    records = history(either, "champion")
    assert len({record.attempt for record in records}) == len(records)
    assert len(records) == 2 + number
    print(f"\n{either.uri}: {hit} kills in {number} promotions and rollbacks, {len(records)} records in one line")
