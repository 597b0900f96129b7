"""A recipe whose evaluation rows cannot show what its policy asks is said to be so before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate_pipelines import form
from tunegate_pipelines.lint_recipe import RULE
from tunegate_pipelines.local import check_recipe
from tunegate_pipelines.recipe import read_recipe

DEMO = Path(form.__file__).parent / "recipes/demo.yaml"


def test_the_demos_rows_can_show_its_margins_and_fewer_cannot() -> None:
    enough = check_recipe(read_recipe(DEMO))
    assert RULE not in {finding.rule for finding in enough.findings}
    assert any("with 100 rows" in told for told in enough.told)
    few = check_recipe(read_recipe(DEMO, ["evaluation_rows=30"]))
    (first, *_) = [finding for finding in few.findings if finding.rule == RULE]
    assert first.severity == "warning"
    assert "with 30 rows" in first.seen
    assert "about 63 would" in first.remedy


def test_the_share_of_rows_that_is_held_back_limits_what_can_be_shown() -> None:
    found = check_recipe(read_recipe(DEMO, ["evaluation_rows=0", "prepare.evaluation_fraction=0.1"]))
    assert any("with 40 rows" in told for told in found.told)


def test_rows_that_are_not_at_hand_are_said_not_to_be_checked() -> None:
    found = check_recipe(read_recipe(DEMO, ["dataset=org/rows@abc"]))
    assert RULE in {unchecked.rule for unchecked in found.unchecked}
    assert found.told == ()


def test_a_backend_without_its_environment_is_refused_before_anything_is_started() -> None:
    changes = ["scheme=W4A16_ASYM", "quantize.backend=autoawq", "quantize.legacy_python=/nowhere/python"]
    with pytest.raises(SettingsError, match="no environment to run autoawq"):
        check_recipe(read_recipe(DEMO, changes))
