"""A registry with a history, made without a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunegate.contracts.manifest import verify
from tunegate.registry.aliases import promote, read_alias
from tunegate.registry.versions import Part, publish
from tunegate.storage.open import open_storage

ALIAS = "champion"


@pytest.fixture
def registry(tmp_path: Path, tiny_dataset: Path) -> tuple[str, list[str]]:
    """A registry in which the alias ``champion`` moved twice."""
    storage = open_storage(str(tmp_path / "registry"))
    versions = []
    for role in ("first", "second"):
        version = publish(storage, {role: Part(tiny_dataset, verify(tiny_dataset))})
        promote(storage, read_alias(storage, ALIAS), version, verdict="v", attempt=role)
        versions.append(version)
    return str(tmp_path / "registry"), versions
