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
from tunegate.registry.claims import begin, end, promoting
from tunegate.registry.refusals import note_refusal, read_refusal
from tunegate.registry.versions import Part, publish
from tunegate.storage.interface import Storage
from tunegate.storage.lease import act, read_lease

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


def made(retrain: Any, *inputs: str) -> None:
    for number, made_from in enumerate(inputs):
        claim = retrain.begin(f"run-{number}", made_from).claim
        retrain.promote(claim, f"version {number}")
        end(retrain.storage, "champion", holder=f"run-{number}")


def test_what_a_person_rolled_back_is_not_made_and_promoted_again(retrain: Any) -> None:
    made(retrain, OLD, NEW)
    rollback(retrain.storage, read_alias(retrain.storage, "champion"))
    assert retrain.begin("run-2", OLD).decision == "unchanged"
    again = retrain.begin("run-3", NEW)
    assert (again.decision, again.claim) == ("rolled back", None)
    assert "finetune" in again.reason  # how it is made anyway
    assert retrain.begin("run-4", "3" * 64).decision == "changed"


def test_everything_that_two_rollbacks_took_away_stays_away(retrain: Any) -> None:
    made(retrain, OLD, NEW, "3" * 64)
    for _ in range(2):
        rollback(retrain.storage, read_alias(retrain.storage, "champion"))
    told = [retrain.begin("next", made_from).decision for made_from in (OLD, NEW, "3" * 64, "4" * 64)]
    assert told == ["unchanged", "rolled back", "rolled back", "changed"]


def test_what_was_refused_is_not_made_again_until_something_changes(retrain: Any, promoted: Callable[..., str]) -> None:
    claim = retrain.begin("run-1").claim
    end(retrain.storage, "champion", holder="run-1")
    assert retrain.begin("run-2").decision == "changed"  # it broke, and nobody said no
    end(retrain.storage, "champion", holder="run-2")
    note_refusal(retrain.storage, claim, by="ann", reason="worse on long rows")
    again = retrain.begin("run-3")
    assert (again.decision, again.claim) == ("refused", None)
    assert "ann" in again.reason and "worse on long rows" in again.reason
    assert retrain.begin("run-4", "3" * 64).decision == "changed"
    end(retrain.storage, "champion", holder="run-4")
    promoted(retrain.storage, "by hand")  # another champion: it is compared with that now
    assert retrain.begin("run-5").decision == "changed"


def test_late_no_does_not_replace_that_of_a_newer_one(retrain: Any) -> None:
    late = retrain.begin("late").claim
    end(retrain.storage, "champion", holder="late")
    newest = retrain.begin("newest", "3" * 64).claim
    note_refusal(retrain.storage, newest, by="the gate", reason="newest")
    note_refusal(retrain.storage, late, by="the gate", reason="late")
    assert read_refusal(retrain.storage, "champion").made_from == "3" * 64  # type: ignore[union-attr]


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


def test_precaution_that_one_holder_failed_to_take_is_taken_by_the_next(
    retrain: Any, parts: Callable[[str], dict[str, Part]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second takes over, breaks before it moves the generation, and its run's end gives the lease back."""
    storage = retrain.storage
    late = retrain.begin("late").claim
    read, version = read_alias(storage, "champion"), publish(storage, parts("late"))
    act(storage, "champion", late.token, seconds=1, now=NOW)

    def breaks(*_: Any) -> None:
        raise ConnectionError("the bucket does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("tunegate.registry.claims.outdate", breaks)
        with pytest.raises(ConnectionError):
            retrain.begin("second", at=NOW + 2 * HOUR)
    assert end(storage, "champion", holder="second")
    third = retrain.begin("third", "3" * 64, NOW + 3 * HOUR)
    assert third.decision == "changed"
    with pytest.raises(ConflictError):  # it acted before it was paused: nothing but the generation holds it back
        promote(storage, read, version, verdict="v", attempt="late")
    assert current(storage, "champion") is None
    end(storage, "champion", holder="third")
    assert not read_lease(storage, "champion").unsettled  # type: ignore[union-attr]


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
