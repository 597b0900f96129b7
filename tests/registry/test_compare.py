"""What differs between two versions is told, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, InputError
from tunegate.registry.aliases import history, read_alias, rollback
from tunegate.registry.compare import Difference, compare_versions
from tunegate.registry.named import named_version
from tunegate.registry.versions import publish
from tunegate.storage.interface import Storage


def test_settings_data_and_metrics_that_differ_are_told_and_the_rest_is_not(
    either: Storage, parts: Callable[[str], Any]
) -> None:
    one, two = publish(either, parts("a")), publish(either, parts("bb"))
    assert compare_versions(either, one, two) == [
        Difference("adapter", "data", "base_model", "a", "bb"),
        Difference("adapter", "metrics", "loss", 1.0, 2.0),
        Difference("adapter", "settings", "lora.r", 1, 2),
        Difference("verdict", "metrics", "loss", 1.0, 2.0),
        Difference("verdict", "settings", "lora.r", 1, 2),
    ]
    assert compare_versions(either, two, two) == []


def test_a_figure_that_was_changed_in_the_registry_is_not_told(either: Storage, parts: Callable[[str], Any]) -> None:
    one, two = publish(either, parts("a")), publish(either, parts("bb"))
    key = f"versions/{two}/adapter/summary.json"
    either.write(key, b'{"loss": 0.0, "rows": 7}', if_generation_match=None)
    with pytest.raises(ArtifactError, match=r"adapter/summary\.json of version .* is not what"):
        compare_versions(either, one, two)


def test_a_version_is_named_by_its_alias_or_its_first_letters(either: Storage, promoted: Callable[..., str]) -> None:
    version = promoted(either, "a", alias="a")
    assert named_version(either, "a") == version
    assert named_version(either, version[:9]) == version
    with pytest.raises(InputError, match="does not name a version"):
        named_version(either, "champion")


def test_rollback_writes_one_record_and_one_pointer_though_the_newest_version_is_gone(
    either: Storage, promoted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = promoted(either, "a"), promoted(either, "bb")
    either.remove_folder(f"versions/{two}", first="manifest.json")
    written: list[str] = []
    write = type(either).write

    def counted(storage: Any, key: str, data: bytes, **kwargs: Any) -> int:
        written.append(key)
        return write(storage, key, data, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(type(either), "write", counted)
        move = rollback(either, read_alias(either, "champion"), note="its files are gone")
    assert move.record.version == one
    assert written == [f"records/{move.record.digest}.json", "aliases/champion.json"]
    assert [record.version for record in history(either, "champion")] == [one, two, one]
