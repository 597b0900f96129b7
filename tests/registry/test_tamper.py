"""A stored version of which anything was changed is refused by name, in a folder and in a bucket."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.registry.versions import fetch_part, fetch_version, publish, show_version, verify_version
from tunegate.storage.interface import Storage


def _change(storage: Storage, folder: str, name: str) -> str:
    blob = storage.read(f"{folder}/{name}")
    assert blob is not None
    storage.write(f"{folder}/{name}", blob.data[:-1] + b"~", if_generation_match=None)
    return f"{name}: changed"


def _add(storage: Storage, folder: str, name: str) -> str:
    storage.write(f"{folder}/{name}.added", b"", if_generation_match=0)
    return f"{name}.added: extra"


def _remove(storage: Storage, folder: str, name: str) -> str:
    storage.delete(f"{folder}/{name}")
    return f"{name}: missing"


def _rename(storage: Storage, folder: str, name: str) -> str:
    blob = storage.read(f"{folder}/{name}")
    assert blob is not None
    storage.write(f"{folder}/{name}.renamed", blob.data, if_generation_match=0)
    storage.delete(f"{folder}/{name}")
    return f"{name}.renamed: extra"


@pytest.mark.parametrize("tamper", [_change, _add, _remove, _rename])
def test_each_file_that_was_tampered_with_is_named(
    either: Storage, parts: Callable[[str], Any], tmp_path: Path, tamper: Callable[[Storage, str, str], str]
) -> None:
    version = publish(either, parts("a"))
    folder = f"versions/{version}"
    names = [entry.path for entry in verify_version(either, version).files]
    assert len(names) == 6
    kept = {name: either.read(f"{folder}/{name}") for name in names}
    for name in names:
        wrong = tamper(either, folder, name)
        for use in (verify_version, lambda *given: fetch_version(*given, tmp_path / "out")):
            with pytest.raises(ArtifactError, match="is not what it should be") as caught:
                use(either, version)
            assert wrong in caught.value.items
        assert not (tmp_path / "out").exists()
        with pytest.raises(ArtifactError, match="is not what was to be uploaded") as caught:
            publish(either, parts("a"))
        assert wrong in caught.value.items
        for key in set(either.list(folder)) - {f"{folder}/{known}" for known in [*names, "manifest.json"]}:
            either.delete(key)
        original = kept[name]
        assert original is not None
        either.write(f"{folder}/{name}", original.data, if_generation_match=None)
    fetch_version(either, version, tmp_path / "out")


def test_an_edited_manifest_is_refused_whether_it_was_made_to_agree_or_not(
    either: Storage, parts: Callable[[str], Any], tmp_path: Path
) -> None:
    version, other = publish(either, parts("a")), publish(either, parts("bb"))
    key = f"versions/{version}/manifest.json"
    blob, foreign = either.read(key), either.read(f"versions/{other}/manifest.json")
    assert blob is not None
    assert foreign is not None
    edited = json.loads(blob.data)
    edited["files"] = edited["files"][1:]
    for data in (json.dumps(edited).encode(), foreign.data, b"{", blob.data.replace(b'"version"', b'"adapter"')):
        either.write(key, data, if_generation_match=None)
        for use in (verify_version, show_version, lambda *given: fetch_version(*given, tmp_path / "out")):
            with pytest.raises(ArtifactError, match=r"manifest") as caught:
                use(either, version)
            assert "manifest" in str(caught.value)
    either.write(key, blob.data, if_generation_match=None)
    verify_version(either, version)
    either.delete(key)
    with pytest.raises(ArtifactError, match="no version"):
        verify_version(either, version)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["parents"].update(adapter="e" * 64),
        lambda d: d["parents"].pop("adapter"),
        lambda d: d["parents"].update(other="e" * 64),
        lambda d: d.update(created="2020-01-01T00:00:00+00:00"),
        lambda d: d.update(image="somebody/else"),
    ],
    ids=["another part", "a part less", "a part more", "the time", "the image"],
)
def test_what_the_digest_does_not_cover_is_held_against_the_parts(
    either: Storage, parts: Callable[[str], Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    version = publish(either, parts("a"))
    _edit(either, version, change)
    for use in _uses(tmp_path):
        with pytest.raises(ArtifactError, match="is not its own"):
            use(either, version)
    assert not (tmp_path / "out").exists()


def test_no_file_joins_a_version_by_being_called_volatile(
    either: Storage, parts: Callable[[str], Any], tmp_path: Path
) -> None:
    version = publish(either, parts("a"))
    either.write(f"versions/{version}/adapter/code.py", b"", if_generation_match=0)
    added = {"path": "adapter/code.py", "size_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    _edit(either, version, lambda d: d.update(files=[*d["files"], added], volatile=["adapter/code.py"]))
    for use in _uses(tmp_path):
        with pytest.raises(ArtifactError, match="manifest"):
            use(either, version)
    assert not (tmp_path / "out").exists()


def _edit(storage: Storage, version: str, change: Callable[[dict[str, Any]], None]) -> None:
    key = f"versions/{version}/manifest.json"
    blob = storage.read(key)
    assert blob is not None
    document = json.loads(blob.data)
    change(document)
    storage.write(key, json.dumps(document).encode(), if_generation_match=None)


def _uses(folder: Path) -> tuple[Callable[[Storage, str], Any], ...]:
    return (
        show_version,
        verify_version,
        lambda *given: fetch_version(*given, folder / "out"),
        lambda *given: fetch_part(*given, "verdict", folder / "out"),
    )
