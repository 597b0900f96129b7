"""The ledger: no judgement is lost, none counts twice, and none is forgotten because it cannot be read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.registry.ledger import count_judgement
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

ROWS = "a" * 64


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def _name(number: int) -> str:
    return f"{number:064x}"


def test_each_judgement_counts_once_and_each_set_of_rows_has_its_own_count(storage: Storage) -> None:
    assert [count_judgement(storage, ROWS, _name(n)) for n in (1, 2, 3)] == [1, 2, 3]
    assert count_judgement(storage, ROWS, _name(2)) == 2  # a retry
    assert count_judgement(storage, "b" * 64, _name(2)) == 1


def test_judgements_that_race_all_count(storage: Storage) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(count_judgement(storage, ROWS, _name(n)))) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 13))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schema_version": 1, "rows": "b", "judgements": []}'])
def test_a_ledger_that_cannot_be_read_does_not_start_again_at_one(storage: Storage, data: bytes) -> None:
    storage.write(f"ledger/{ROWS}.json", data, if_generation_match=0)
    with pytest.raises(ArtifactError, match="cannot be read"):
        count_judgement(storage, ROWS, _name(1))
