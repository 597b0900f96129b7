"""What the registry promises: versions never change, history and alias agree, one winner a generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.registry.aliases import (
    Alias,
    current,
    history,
    list_aliases,
    promote,
    read_alias,
    rollback,
)
from tunegate.registry.versions import (
    Part,
    fetch_version,
    find_version,
    list_versions,
    publish,
    show_version,
)
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "registry"))


def _part(folder: Path, kind: str, text: str) -> Part:
    def build(partial: Path) -> None:
        (partial / "weights").write_text(text)

    return Part(folder, produce(folder, kind=kind, parents={}, settings={"text": text}, build=build))


def _version(storage: Storage, folder: Path, text: str) -> str:
    parts = {kind: _part(folder / text / kind, kind, text) for kind in ("adapter", "verdict")}
    return publish(storage, parts)


def _promote(storage: Storage, version: str, attempt: str = "", alias: str = "champion") -> bool:
    state = read_alias(storage, alias)
    return promote(storage, state, version, verdict="v", attempt=attempt or f"attempt {version}").moved


def test_a_version_is_named_by_what_it_holds_and_comes_back_byte_for_byte(storage: Storage, tmp_path: Path) -> None:
    version = _version(storage, tmp_path, "one")
    assert list_versions(storage) == [version]
    assert find_version(storage, version[:8]) == version
    manifest = show_version(storage, version)
    assert set(manifest.parents) == {"adapter", "verdict"}
    assert {entry.path for entry in manifest.files} == {
        f"{part}/{name}" for part in ("adapter", "verdict") for name in ("weights", "manifest.json")
    }
    assert fetch_version(storage, version, tmp_path / "out").content_digest == version
    assert (tmp_path / "out/adapter/weights").read_text() == "one"


def test_publishing_again_gives_the_same_version_and_other_content_another(storage: Storage, tmp_path: Path) -> None:
    assert _version(storage, tmp_path, "one") == _version(storage, tmp_path, "one")
    assert _version(storage, tmp_path, "two") != _version(storage, tmp_path, "one")
    with pytest.raises(InputError, match="does not name a version"):
        find_version(storage, "")


@pytest.mark.parametrize(
    ("name", "change"),
    [("adapter/weights", "changed"), ("adapter/manifest.json", "changed"), ("manifest.json", "edited")],
)
def test_a_version_that_was_changed_in_the_registry_is_refused_by_name(
    storage: Storage, tmp_path: Path, name: str, change: str
) -> None:
    version = _version(storage, tmp_path, "one")
    path = tmp_path / "registry/versions" / version / name
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b" " + data[-3:] if name != "manifest.json" else data.replace(b"weights", b"weighty"))
    with pytest.raises(ArtifactError, match=f"{name}: {change}" if change == "changed" else change):
        fetch_version(storage, version, tmp_path / "out")
    with pytest.raises(ArtifactError, match=f"{name}: changed"):
        _version(storage, tmp_path, "one")


def test_one_version_under_another_s_name_is_refused(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    root = tmp_path / "registry/versions"
    (root / one).rename(root / "moved")
    (root / two).rename(root / one)
    with pytest.raises(ArtifactError, match="is not its own"):
        show_version(storage, one)
    with pytest.raises(ArtifactError, match="no version"):
        show_version(storage, two)


def test_history_is_the_chain_from_the_alias_back_to_its_first_version(storage: Storage, tmp_path: Path) -> None:
    assert current(storage, "champion") is None
    assert history(storage, "champion") == []
    versions = [_version(storage, tmp_path, text) for text in ("one", "two", "three")]
    assert all(_promote(storage, version) for version in versions)
    _promote(storage, versions[0], alias="other")
    assert [record.version for record in history(storage, "champion")] == versions[::-1]
    assert list_aliases(storage) == ["champion", "other"]
    head = current(storage, "champion")
    assert head is not None
    assert head.version == versions[2]


def test_an_attempt_happens_once_even_when_others_moved_on_since(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    assert _promote(storage, one, "a")
    assert not _promote(storage, one, "a")
    assert _promote(storage, two, "b")
    assert not _promote(storage, one, "a")
    assert [record.version for record in history(storage, "champion")] == [two, one]


def test_whoever_decided_on_an_older_state_of_the_alias_loses(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    stale = read_alias(storage, "champion")
    _promote(storage, one)
    with pytest.raises(ConflictError):
        promote(storage, stale, two, verdict="v", attempt="late")
    assert [record.version for record in history(storage, "champion")] == [one]


class _LostAnswer:
    """A storage whose alias write succeeds while the answer is lost, as a retrying client sees it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> object:
        return getattr(self._storage, name)

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        self._storage.write(key, data, if_generation_match=if_generation_match)
        return self._storage.write(key, data, if_generation_match=if_generation_match)


def test_an_answer_lost_after_success_is_success(storage: Storage, tmp_path: Path) -> None:
    version = _version(storage, tmp_path, "one")
    lossy: Storage = _LostAnswer(storage)  # type: ignore[assignment]
    move = promote(lossy, read_alias(storage, "champion"), version, verdict="v", attempt="a")
    assert not move.moved
    assert [record.attempt for record in history(storage, "champion")] == ["a"]


def test_rollback_walks_back_one_version_at_a_time_and_keeps_history(storage: Storage, tmp_path: Path) -> None:
    versions = [_version(storage, tmp_path, text) for text in ("one", "two", "three")]
    for version in versions:
        _promote(storage, version)
    for expected in (versions[1], versions[0]):
        move = rollback(storage, read_alias(storage, "champion"), note="broken")
        assert move.record.version == expected
    with pytest.raises(InputError, match="nothing to go back to"):
        rollback(storage, read_alias(storage, "champion"))
    assert [record.action for record in history(storage, "champion")] == ["rollback"] * 2 + ["promote"] * 3
    _promote(storage, versions[2], "again")
    assert rollback(storage, read_alias(storage, "champion")).record.version == versions[0]


def test_rollback_needs_no_data_of_the_version_it_leaves(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    _promote(storage, one)
    _promote(storage, two)
    for key in storage.list(f"versions/{two}"):
        storage.delete(key)
    before = set(storage.list(""))
    assert rollback(storage, read_alias(storage, "champion"), attempt="r").record.version == one
    assert len(set(storage.list("")) - before) == 1
    assert not rollback(storage, read_alias(storage, "champion"), attempt="r").moved


def test_no_alias_points_at_a_version_that_is_not_there(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    with pytest.raises(InputError, match="is not in"):
        _promote(storage, "0" * 64)
    _promote(storage, one)
    _promote(storage, two)
    for key in storage.list(f"versions/{one}"):
        storage.delete(key)
    with pytest.raises(InputError, match="is not in"):
        rollback(storage, read_alias(storage, "champion"))
    assert [record.version for record in history(storage, "champion")] == [two, one]


@pytest.mark.parametrize("name", ["", "Champion", "a/b", "../a", ".hidden", "a" * 64, "a b", "-a", "a\n", "a."])
def test_alias_names_that_could_be_paths_are_refused(storage: Storage, name: str) -> None:
    with pytest.raises(InputError, match="is not allowed"):
        read_alias(storage, name)
    with pytest.raises(InputError, match="is not allowed"):
        rollback(storage, Alias(name, None, 0))


def test_an_edited_record_or_alias_breaks_the_history_loudly(storage: Storage, tmp_path: Path) -> None:
    one, two = _version(storage, tmp_path, "one"), _version(storage, tmp_path, "two")
    _promote(storage, one)
    _promote(storage, two)
    _promote(storage, one, alias="other")
    first = history(storage, "champion")[1].digest
    path = tmp_path / f"registry/records/{first}.json"
    path.write_text(path.read_text().replace(one, two))
    with pytest.raises(ArtifactError, match=f"broken at record {first}"):
        history(storage, "champion")
    pointer = json.loads((tmp_path / "registry/aliases/other.json").read_text())
    (tmp_path / "registry/aliases/champion.json").write_text(json.dumps({**pointer, "alias": "champion"}))
    with pytest.raises(ArtifactError, match="record of another alias"):
        current(storage, "champion")
    (tmp_path / "registry/aliases/champion.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_alias(storage, "champion")
