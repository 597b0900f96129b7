"""A recipe whose evaluation rows cannot show what its policy asks is said to be so before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tunegate.contracts.errors import SettingsError
from tunegate.preflight.lint import Linted
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


@pytest.fixture
def own_task(tmp_path: Path) -> str:
    """A task file with 40 rows."""
    rows = "".join(f'{{"number": {number}}}\n' for number in range(40))
    (tmp_path / "squares.jsonl").write_text(rows, "utf-8")
    task = {"name": "squares", "type": "exact_match", "data": "squares.jsonl", "prompt": "{{number}} squared?"}
    task["answer"] = "{{number * number}}"
    (tmp_path / "squares.yaml").write_text(yaml.safe_dump(task), "utf-8")
    return str(tmp_path / "squares.yaml")


def _asking(own_task: str, metric: str, *more: str) -> Linted:
    checks = (
        f"[{{task: squares, metric: {metric}, candidate: quantized, reference: merged, margin: 0.1}}, "
        "{task: tool_call, metric: exact, candidate: quantized, reference: merged, margin: 0.1}]"
    )
    changes = [f"evaluate.tasks=[tool_call, {own_task}]", f"gate.policy={{checks: {checks}}}"]
    return check_recipe(read_recipe(DEMO, [*changes, *more]))


def test_a_policy_names_a_task_file_by_the_tasks_name_and_hears_what_its_rows_can_show(own_task: str) -> None:
    linted = _asking(own_task, "exact")
    assert [finding.seen.split(":")[0] for finding in linted.findings if finding.rule == RULE] == ["squares.exact"]
    assert ["with 40 rows" in linted.told[0], "with 100 rows" in linted.told[1]] == [True, True]
    assert "with 30 rows" in _asking(own_task, "exact", "evaluation_rows=30").told[0]


def test_a_metric_that_a_task_file_does_not_measure_is_an_error_before_the_run(own_task: str) -> None:
    (found, *_) = [finding for finding in _asking(own_task, "acc").findings if finding.rule == "policy-task"]
    assert (found.severity, found.remedy) == ("error", "use one of exact")


def test_rows_that_are_not_at_hand_are_said_not_to_be_checked() -> None:
    found = check_recipe(read_recipe(DEMO, ["dataset=org/rows@abc"]))
    assert RULE in {unchecked.rule for unchecked in found.unchecked}
    assert found.told == ()


def test_a_backend_without_its_environment_is_refused_before_anything_is_started() -> None:
    changes = ["scheme=W4A16_ASYM", "quantize.backend=autoawq", "quantize.legacy_python=/nowhere/python"]
    with pytest.raises(SettingsError, match="no environment to run autoawq"):
        check_recipe(read_recipe(DEMO, changes))
