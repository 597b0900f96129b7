"""What garbage collection promises: what somebody needs stays, whoever comes at whatever moment."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.registry import aliases, presence
from tunegate.registry import collect as collection
from tunegate.registry import versions as published
from tunegate.registry.aliases import current, promote, read_alias, rollback
from tunegate.registry.collect import Rules, collect
from tunegate.registry.presence import Removal, list_removals, mark, read_removal
from tunegate.registry.versions import has_version, list_versions, publish, verify_version
from tunegate.storage.interface import Storage

NOW = datetime.datetime.now(datetime.UTC)
LATER = NOW + datetime.timedelta(days=8)


def _collect(storage: Storage, *, keep: int = 2, now: datetime.datetime = LATER, remove: bool = True) -> dict[str, str]:
    return {j.version: j.fate for j in collect(storage, Rules(keep=keep), now=now, remove=remove)}


def test_what_no_alias_needs_goes_and_the_last_records_stay(either: Storage, promoted: Callable[..., str]) -> None:
    versions = [promoted(either, text) for text in ("a", "bb", "ccc", "dddd")]
    other = promoted(either, "eeeee", alias="other")
    before = either.list("")
    fates = dict.fromkeys([*versions[1:], other], "kept")
    assert _collect(either, now=NOW) == {**fates, versions[0]: "kept"}  # a record of today names it
    assert _collect(either, remove=False) == {**fates, versions[0]: "remove"}
    assert either.list("") == before
    assert _collect(either) == {**fates, versions[0]: "removed"}
    assert sorted(list_versions(either)) == sorted(fates)
    assert either.stamps(f"versions/{versions[0]}") == {}
    assert [key for key in either.list("") if versions[0] in key] == []
    for version in fates:
        verify_version(either, version)
    assert _collect(either) == fates


def test_what_the_next_rollbacks_go_back_to_stays(either: Storage, promoted: Callable[..., str]) -> None:
    versions = [promoted(either, text * 2) for text in "abcdef"]
    for _ in range(3):
        rollback(either, read_alias(either, "champion"))
    fates = _collect(either, keep=1)
    assert fates == {**dict.fromkeys(versions, "removed"), versions[2]: "kept", versions[1]: "kept"}
    assert rollback(either, read_alias(either, "champion")).record.version == versions[1]


def test_a_version_that_waits_to_be_promoted_stays_for_the_grace_period(
    either: Storage, parts: Callable[[str], Any]
) -> None:
    version = publish(either, parts("a"))
    assert _collect(either, now=NOW) == {version: "kept"}
    assert _collect(either) == {version: "removed"}
    assert publish(either, parts("a")) == version
    verify_version(either, version)


def test_an_upload_that_is_running_stays_and_one_that_was_killed_goes(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(either, parts("a"))
    either.delete(f"versions/{version}/manifest.json")
    assert _collect(either, now=NOW) == {version: "kept"}
    assert _collect(either) == {version: "removed"}
    assert either.stamps("versions") == {}


def test_an_alias_that_moves_there_while_it_is_collected_finds_it_or_is_refused(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody promotes between the first look and the mark, and somebody else after the second look."""
    first, second = publish(either, parts("a")), publish(either, parts("bb"))
    ask, moves = collection._needed, iter([first, second])

    def then_moved(storage: Storage, *arguments: Any) -> dict[str, str]:
        needed = ask(storage, *arguments)
        version = next(moves)
        if version == second:
            with pytest.raises(InputError, match="is not in"):
                promote(storage, read_alias(storage, "late"), version, verdict="v", attempt="late")
        else:
            promote(storage, read_alias(storage, "champion"), version, verdict="v", attempt="first")
        return needed

    with monkeypatch.context() as patched:
        patched.setattr(collection, "_needed", then_moved)
        assert _collect(either) == {first: "kept", second: "removed"}
    record = current(either, "champion")
    assert record is not None
    assert record.version == first
    verify_version(either, first)
    assert current(either, "late") is None
    assert list_removals(either) == set()


def _decided(storage: Storage, version: str) -> None:
    """What a collection leaves that has looked at everything and is about to remove the version."""
    mark(storage, version, "removing", over=mark(storage, version, "asking", over=None))


def test_an_alias_does_not_move_to_what_a_collection_removed_between_two_questions(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked before the record was written, and ends after the first of the two: whichever that is."""
    version = publish(either, parts("a"))
    exists, removal, write = type(either).exists, published.read_removal, aliases.write_record
    running: list[str] = []

    def end(answer: Any) -> Any:
        if running:
            assert _collect(either, now=NOW) == {running.pop(): "removed"}
        return answer

    def record_after_its_look(*given: Any) -> str:
        _decided(either, version)
        running.append(version)
        return write(*given)

    monkeypatch.setattr(aliases, "write_record", record_after_its_look)
    monkeypatch.setattr(type(either), "exists", lambda *given: end(exists(*given)))
    monkeypatch.setattr(published, "read_removal", lambda *given: end(removal(*given)))
    with pytest.raises(InputError, match="is not in"):
        promote(either, read_alias(either, "champion"), version, verdict="v", attempt="one")
    assert running == []
    assert current(either, "champion") is None
    assert list_versions(either) == []


def test_what_is_brought_while_a_collection_ends_keeps_its_arrival(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection takes the old arrival along: the new one must not go with it, for the next collection asks."""
    version = publish(either, parts("a"))
    _decided(either, version)
    running = iter([version])

    def ended(storage: Storage, asked: str) -> Removal | None:
        if next(running, None):
            assert _collect(storage) == {asked: "removed"}
        return read_removal(storage, asked)

    monkeypatch.setattr(presence, "read_removal", ended)
    assert publish(either, parts("a")) == version
    assert _collect(either, now=NOW) == {version: "kept"}
    verify_version(either, version)


def test_a_record_that_is_written_and_has_not_moved_its_alias_yet_keeps_its_version(
    either: Storage, promoted: Callable[..., str]
) -> None:
    version = promoted(either, "a")
    either.delete("aliases/champion.json")
    either.delete(f"arrivals/{version}.json")
    assert _collect(either, now=NOW) == {version: "kept"}


def test_what_is_brought_again_while_it_is_collected_is_refused_and_then_accepted(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(either, parts("a"))
    with monkeypatch.context() as patched:
        patched.setattr(type(either), "remove_folder", _killed)
        with pytest.raises(KeyboardInterrupt):
            _collect(either)
    assert not has_version(either, version)
    assert list_versions(either) == []
    with pytest.raises(ConflictError, match="is being removed") as caught:
        publish(either, parts("a"))
    assert "registry gc" in caught.value.remedy
    assert _collect(either, now=NOW) == {version: "removed"}  # finished, though it was brought just now
    assert publish(either, parts("a")) == version
    verify_version(either, version)


def test_a_mark_that_a_killed_collection_left_is_taken_away_where_the_version_is_needed(
    either: Storage, promoted: Callable[..., str]
) -> None:
    version = promoted(either, "a")
    mark(either, version, "asking", over=None)
    assert not has_version(either, version)
    assert _collect(either) == {version: "kept"}
    assert has_version(either, version)


def test_of_two_collections_one_removes_and_the_late_one_touches_nothing_that_came_since(
    either: Storage, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(either, parts("a"))
    stamps, others = type(either).stamps, iter([True])

    def then_another(storage: Any, prefix: str) -> dict[str, int]:
        seen = stamps(storage, prefix)
        if prefix.endswith(version) and next(others, False):
            assert _collect(storage) == {version: "removed"}
            publish(storage, parts("a"))
        return seen

    monkeypatch.setattr(type(either), "stamps", then_another)
    assert _collect(either) == {version: "kept"}
    verify_version(either, version)


def test_a_removal_that_was_taken_over_is_left_to_the_other(either: Storage, parts: Callable[[str], Any]) -> None:
    version = publish(either, parts("a"))
    first = mark(either, version, "asking", over=None)
    second = mark(either, version, "asking", over=read_removal(either, version))
    with pytest.raises(ConflictError):
        mark(either, version, "removing", over=first)
    assert read_removal(either, version) == second


def test_nothing_is_removed_when_an_alias_cannot_be_read(tmp_path: Path, promoted: Callable[..., str]) -> None:
    from tunegate.storage.open import open_storage

    storage = open_storage(str(tmp_path / "registry"))
    versions = [promoted(storage, text * 3) for text in "abcd"]
    pointer = tmp_path / "registry/aliases/champion.json"
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "record": "0" * 64}))
    with pytest.raises(ArtifactError, match="history"):
        _collect(storage)
    assert list_versions(storage) == sorted(versions)


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
