"""Retraining: skipped when nothing changed, alone while it goes on, and promoted by the newest holder only."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from tunegate.contracts.claim import Claim, parse_claim
from tunegate.contracts.errors import ConflictError, InputError
from tunegate.registry import aliases
from tunegate.registry.aliases import Alias, Move, current, history, outdate, promote, read_alias, rollback
from tunegate.registry.claims import begin, end, made_now, promoting
from tunegate.registry.versions import Part, publish
from tunegate.storage.interface import Storage
from tunegate.storage.lease import read_lease

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)
OLD, NEW = "1" * 64, "2" * 64


@pytest.fixture
def retrain(either: Storage, parts: Callable[[str], dict[str, Part]]) -> Any:
    """Begins a retraining, and promotes what it made from where the alias stood when it was read."""

    class Retrain:
        storage = either

        def begin(self, holder: str, made_from: str = NEW, at: datetime.datetime = NOW) -> Any:
            return begin(either, "champion", made_from=made_from, holder=holder, seconds=3600, now=at)

        def promote(self, claim: Claim, text: str, alias: Alias | None = None) -> Move:
            version = publish(either, parts(text))
            read = alias or read_alias(either, "champion")
            guard = promoting(either, claim)
            return promote(either, read, version, verdict="v", attempt=text, made_from=claim.made_from, guard=guard)

    return Retrain()


def test_first_retraining_has_something_to_do_and_the_next_has_not(retrain: Any) -> None:
    begun = retrain.begin("run-1")
    assert begun.decision == "changed"
    assert retrain.promote(begun.claim, "one").moved
    assert end(retrain.storage, "champion", holder="run-1")
    again = retrain.begin("run-2")
    assert (again.decision, again.claim) == ("unchanged", None)
    assert read_lease(retrain.storage, "champion").token == 1  # the lease was not even taken
    assert retrain.begin("run-3", "3" * 64).decision == "changed"


def test_rollback_makes_an_earlier_answer_the_present_one(retrain: Any) -> None:
    for number, made_from in enumerate((OLD, NEW)):
        claim = retrain.begin(f"run-{number}", made_from).claim
        retrain.promote(claim, f"version {number}")
        end(retrain.storage, "champion", holder=f"run-{number}")
    rollback(retrain.storage, read_alias(retrain.storage, "champion"))
    assert made_now(retrain.storage, "champion") == OLD
    assert retrain.begin("run-2", OLD).decision == "unchanged"
    assert retrain.begin("run-3", NEW).decision == "changed"


def test_version_that_no_retraining_made_is_made_anew(retrain: Any, promoted: Callable[..., str]) -> None:
    promoted(retrain.storage, "by hand")
    assert retrain.begin("run-1").decision == "changed"


def test_two_do_not_overlap(retrain: Any) -> None:
    assert retrain.begin("run-1").decision == "changed"
    second = retrain.begin("run-2")
    assert (second.decision, second.claim) == ("held", None)
    assert "run-1" in second.reason
    end(retrain.storage, "champion", holder="run-1")
    assert retrain.begin("run-2").decision == "changed"


def test_dead_one_blocks_nobody_longer_than_its_lease(retrain: Any) -> None:
    retrain.begin("dead")
    assert retrain.begin("next", at=NOW + HOUR / 2).decision == "held"
    begun = retrain.begin("next", at=NOW + 2 * HOUR)
    assert begun.decision == "changed"
    assert "died" in begun.reason
    assert retrain.promote(begun.claim, "next").moved


def test_begin_that_is_tried_again_has_the_same_claim(retrain: Any) -> None:
    assert retrain.begin("run-1") == retrain.begin("run-1")


def test_paused_one_that_wakes_late_promotes_nothing(retrain: Any) -> None:
    late = retrain.begin("late").claim
    newest = retrain.begin("newest", "3" * 64, NOW + 2 * HOUR).claim
    with pytest.raises(ConflictError, match="taken by somebody else"):
        retrain.promote(late, "late")
    assert current(retrain.storage, "champion") is None
    assert retrain.promote(newest, "newest").moved
    with pytest.raises(ConflictError):
        retrain.promote(late, "late")
    assert [record.made_from for record in history(retrain.storage, "champion")] == ["3" * 64]


@pytest.mark.parametrize("first", [True, False], ids=["no alias yet", "an alias"])
@pytest.mark.parametrize("given_back", [True, False], ids=["its run ended", "its run died"])
def test_one_that_is_paused_inside_its_promotion_moves_nothing_after_somebody_took_over(
    retrain: Any, promoted: Callable[..., str], monkeypatch: pytest.MonkeyPatch, first: bool, given_back: bool
) -> None:
    """It has checked its token, and sleeps before the pointer is written: the last moment there is."""
    if not first:
        promoted(retrain.storage, "by hand")
    late = retrain.begin("late").claim
    before = current(retrain.storage, "champion")
    writes = aliases.write_record

    def pause(storage: Storage, record: Any) -> str:
        monkeypatch.setattr(aliases, "write_record", writes)
        if given_back:
            end(storage, "champion", holder="late")
        taken = retrain.begin("newest", "3" * 64, NOW + 9 * HOUR)
        assert taken.decision == "changed"
        return writes(storage, record)

    monkeypatch.setattr(aliases, "write_record", pause)
    with pytest.raises(ConflictError):
        retrain.promote(late, "late")
    assert current(retrain.storage, "champion") == before
    newest = retrain.begin("newest", "3" * 64, NOW + 9 * HOUR).claim
    assert retrain.promote(newest, "newest").moved


def test_taking_over_leaves_the_alias_where_it_points(retrain: Any, promoted: Callable[..., str]) -> None:
    version = promoted(retrain.storage, "by hand")
    before = read_alias(retrain.storage, "champion")
    outdate(retrain.storage, "champion")
    after = read_alias(retrain.storage, "champion")
    assert after.record == before.record and after.generation != before.generation
    assert current(retrain.storage, "champion").version == version  # type: ignore[union-attr]


def test_promotion_after_its_run_ended_gives_the_lease_back_again(retrain: Any) -> None:
    """An approval that is used by the pipeline `promote`, hours after the run that asked."""
    claim = retrain.begin("run-1").claim
    end(retrain.storage, "champion", holder="run-1")
    assert retrain.promote(claim, "one").moved
    assert read_lease(retrain.storage, "champion").released
    assert retrain.begin("run-2", "3" * 64).decision == "changed"


def test_promotion_that_is_tried_again_after_success_is_success(retrain: Any) -> None:
    claim = retrain.begin("run-1").claim
    retrain.promote(claim, "one")
    retrain.begin("run-2", "3" * 64, NOW + 9 * HOUR)
    assert not retrain.promote(claim, "one").moved


def test_record_without_retraining_keeps_its_name(retrain: Any, promoted: Callable[..., str]) -> None:
    promoted(retrain.storage, "by hand")
    (record,) = history(retrain.storage, "champion")
    assert "made_from" not in record.to_json()


def test_claim_is_read_strictly_and_numbers_of_kfp_are_whole_ones() -> None:
    assert parse_claim({}) is None
    assert parse_claim({"lease": "a", "token": 3.0, "made_from": NEW}) == Claim("a", 3, NEW)
    for wrong in (
        {"lease": "a"},
        {"lease": "a", "token": 1.5, "made_from": NEW},
        {"lease": "a", "token": 1, "made_from": ""},
    ):
        with pytest.raises(InputError):
            parse_claim({"lease": "a", **wrong})
