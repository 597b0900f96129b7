"""A stored version of which anything was changed is refused by name, in a folder and in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.registry.versions import fetch_version, publish, show_version, verify_version
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
    either.delete(key)
    with pytest.raises(ArtifactError, match="no version"):
        verify_version(either, version)
