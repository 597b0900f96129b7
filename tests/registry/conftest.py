"""Versions of a few bytes, on both kinds of storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.registry.aliases import Move, promote, read_alias
from tunegate.registry.versions import Part, publish
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage


@pytest.fixture(params=["folder", "bucket"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A registry in a folder, and one in a bucket of the test server."""
    if request.param == "folder":
        return open_storage(str(tmp_path / "registry"))
    return open_storage(request.getfixturevalue("gcs_bucket") + "/some/registry")


@pytest.fixture
def parts(tmp_path: Path) -> Callable[[str], dict[str, Part]]:
    """The parts of a version that differs by a text."""

    def make(text: str) -> dict[str, Part]:
        def part(kind: str) -> Part:
            def build(partial: Path) -> None:
                (partial / "weights").write_text(text * 1000)
                (partial / "summary.json").write_bytes(pretty_json({"loss": float(len(text)), "rows": 7}))

            folder = tmp_path / "parts" / text / kind
            parents = {"dataset": "d" * 64, "base_model": text} if kind == "adapter" else {"adapter": "a" * 64}
            settings = {"lora": {"r": len(text)}, "seed": 42}
            return Part(folder, produce(folder, kind=kind, parents=parents, settings=settings, build=build))

        return {kind: part(kind) for kind in ("adapter", "verdict")}

    return make


@pytest.fixture
def promoted(parts: Callable[[str], dict[str, Part]]) -> Callable[..., str]:
    """Publishes a version and moves an alias to it."""

    def move(storage: Storage, text: str, alias: str = "champion") -> str:
        version = publish(storage, parts(text))
        attempt = f"{alias} {text}"
        done: Move = promote(storage, read_alias(storage, alias), version, verdict="v", attempt=attempt)
        assert done.moved
        return version

    return move
