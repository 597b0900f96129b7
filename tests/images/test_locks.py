"""Locks: whoever clones gets the same packages, from an index and from no path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LOCKS = sorted((Path(__file__).parents[2] / "images").glob("*/requirements.lock"))


def requirements(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_every_package_is_pinned_and_comes_from_an_index(lock: Path) -> None:
    unpinned = [line for line in requirements(lock) if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line)]
    assert unpinned == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_the_lock_holds_what_its_sources_ask_for(lock: Path) -> None:
    def name(line: str) -> str:
        return re.split(r"[=<>~ #\[]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")

    locked = {name(line) for line in requirements(lock)}
    asked = {name(line) for source in lock.parent.glob("*.in") for line in requirements(source)}
    assert asked <= locked
