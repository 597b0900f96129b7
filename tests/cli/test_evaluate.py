"""``tunegate evaluate`` and a task file in a recipe: asked, or refused before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_readme import RECIPE, TASK, TASK_ROWS
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate_pipelines.own_tasks import absolute_tasks

RUNNER = CliRunner()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The README's task."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/capitals.jsonl").write_text(TASK_ROWS, "utf-8")
    path = tmp_path / "tasks/capitals.yaml"
    path.write_text(TASK, "utf-8")
    return path


def test_the_json_of_an_evaluation_is_one_document_and_progress_is_no_part_of_it(task, tiny_base, tmp_path) -> None:
    arguments = ["evaluate", str(tiny_base), "--task", str(task), "--output", str(tmp_path / "out"), "--json"]
    result = RUNNER.invoke(app, [*arguments, "--limit", "2"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["rows"], document["output"]) == (2, str(tmp_path / "out")) and "capitals.exact" in document
    assert "page.html" in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_task_on_a_data_sets_rows_needs_one(tiny_base, tmp_path) -> None:
    result = RUNNER.invoke(app, ["evaluate", str(tiny_base), "--task", "tool_call", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and "asks the rows of a data set" in result.output


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("prompt:", "promt:", "did you mean 'prompt'"), ("{{country}}", "{{land}}", "'land' is undefined"), ("", "", "")],
)
def test_a_recipe_with_a_task_file_is_linted_with_its_rows(task, tmp_path, old: str, new: str, says: str) -> None:
    task.write_text(TASK.replace(old, new), "utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    tasks = f"evaluate.tasks=[tool_call, {task}]"
    result = RUNNER.invoke(app, ["lint", str(tmp_path / "recipe.yaml"), "--set", tasks])
    assert result.exit_code == (2 if says else 0), result.output
    assert says in result.output


def test_steps_that_run_elsewhere_find_the_task_file(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"evaluate": {"tasks": ["tool_call", "tasks/a.yaml", "gs://bucket/b.yaml"], "limit": 3}}
    told = absolute_tasks(given)["evaluate"]
    assert told == {"tasks": ["tool_call", str(tmp_path / "tasks/a.yaml"), "gs://bucket/b.yaml"], "limit": 3}
    assert absolute_tasks({"train": {"r": 4}}) == {"train": {"r": 4}}
