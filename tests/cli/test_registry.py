"""``tunegate registry``: what is there, what differs, what is wrong, and what nothing needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.registry.presence import mark
from tunegate.registry.signatures import sign_version
from tunegate.registry.versions import fetch_version
from tunegate.storage.open import open_storage

RUNNER = CliRunner()


def _asked(*command: str) -> Any:
    result = RUNNER.invoke(app, ["registry", *command, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_version_is_listed_with_the_aliases_on_it(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    rows = {row["version"]: row for row in _asked("list", place, "--versions")}
    assert rows.keys() == set(versions)
    assert [rows[version]["aliases"] for version in versions] == ["", "champion"]
    assert all(row["size_bytes"] > 0 for row in rows.values())


def test_a_version_is_shown_by_its_first_letters_and_an_alias_by_its_name(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    assert _asked("show", place, versions[0][:12])["version"] == versions[0]
    assert _asked("show", place, "champion")["version"] == versions[1]
    told = RUNNER.invoke(app, ["registry", "show", place, versions[0]])
    assert "content digest" in told.stdout
    assert RUNNER.invoke(app, ["registry", "show", place, "absent"]).exit_code == 2


def test_what_differs_is_a_table_for_people_and_json_for_scripts(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    rows = _asked("diff", place, versions[0], "champion")
    assert rows
    assert rows[0].keys() == {"part", "what", "name", "before", "after"}
    told = RUNNER.invoke(app, ["registry", "diff", place, versions[0], "champion"])
    assert rows[0]["name"] in told.stdout
    same = RUNNER.invoke(app, ["registry", "diff", place, "champion", "champion"])
    assert "the same settings, data and metrics" in same.stdout


def test_a_version_that_was_changed_exits_2_and_names_the_file(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    found = _asked("verify", place, "champion")
    assert found["version"] == versions[1]
    assert found["files"] > 1
    changed = Path(place) / "versions" / versions[1] / "second" / "train.jsonl"
    changed.write_text("changed")
    result = RUNNER.invoke(app, ["registry", "verify", place, "champion"])
    assert result.exit_code == 2
    assert "second/train.jsonl: changed" in result.stderr


def test_a_version_is_verified_with_the_key_that_signed_it_and_with_no_other(
    registry: tuple[str, list[str]], tmp_path: Path, key_pair: Any
) -> None:
    place, versions = registry
    signing, other = key_pair(tmp_path), key_pair(tmp_path, "other")
    asked = ["registry", "verify", place, "champion", "--public-key"]
    unsigned = RUNNER.invoke(app, [*asked, signing.public_key])
    assert (unsigned.exit_code, "no signature" in unsigned.stderr) == (2, True)
    storage = open_storage(place)
    fetch_version(storage, versions[1], tmp_path / "copy")
    sign_version(storage, versions[1], tmp_path / "copy", signing, {})
    assert _asked("verify", place, "champion", "--public-key", signing.public_key)["signature"] == "verified"
    assert RUNNER.invoke(app, [*asked, other.public_key]).exit_code == 2


def test_gc_only_says_what_would_go_until_it_is_told_yes(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    before = open_storage(place).list("")
    assert {row["fate"] for row in _asked("gc", place)} == {"kept"}  # both were brought today
    mark(open_storage(place), versions[0], "removing", over=None)  # of a collection that was killed
    told = RUNNER.invoke(app, ["registry", "gc", place])
    assert "nothing was removed; --yes removes 1 versions" in told.stderr
    assert {row["version"]: row["fate"] for row in _asked("gc", place)} == {versions[0]: "remove", versions[1]: "kept"}
    assert set(before) < set(open_storage(place).list(""))
    fates = {row["version"]: row["fate"] for row in _asked("gc", place, "--yes")}
    assert fates == {versions[0]: "removed", versions[1]: "kept"}
    assert [key for key in open_storage(place).list("versions") if versions[0] in key] == []


@pytest.mark.parametrize("option", ["--keep=0", "--grace-days=0"])
def test_gc_does_not_take_rules_that_would_remove_what_is_served(registry: tuple[str, list[str]], option: str) -> None:
    assert RUNNER.invoke(app, ["registry", "gc", registry[0], option, "--yes"]).exit_code == 2
