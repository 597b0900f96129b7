"""Locks: whoever clones gets the same packages, from an index and from no path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LOCKS = sorted((Path(__file__).parents[2] / "images").glob("*/requirements.lock"))


def name(line: str) -> str:
    """The package that a line asks for."""
    return re.split(r"[=<>~ #\[]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def requirements(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_every_package_is_pinned_and_comes_from_an_index(lock: Path) -> None:
    unpinned = [line for line in requirements(lock) if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line)]
    assert unpinned == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_the_lock_holds_what_its_sources_ask_for(lock: Path) -> None:
    locked = {name(line) for line in requirements(lock)}
    asked = {name(line) for source in lock.parent.glob("*.in") for line in requirements(source)}
    assert asked <= locked


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_what_is_left_out_on_purpose_does_not_come_back(lock: Path) -> None:
    """torchvision of an index without CPU builds, for one: vLLM cannot be imported beside it."""
    left_out = lock.parent / "left-out.txt"
    unwanted = {name(line) for line in requirements(left_out)} if left_out.is_file() else set()
    assert not unwanted & {name(line) for line in requirements(lock)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_torch_is_named_so_that_every_index_has_it(lock: Path) -> None:
    """Its CPU build has another local version on each index."""
    assert [line for line in requirements(lock) if line.startswith("torch==") and "+" in line] == []


def test_what_is_evaluated_and_what_is_served_run_on_the_same_torch() -> None:
    versions = {line for lock in LOCKS for line in requirements(lock) if lock.parent.name in ("local", "serve")}
    assert len([line for line in versions if line.startswith("torch==")]) == 1
