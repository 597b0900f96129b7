"""The command line: exit codes that scripts can use, errors that people can, and nothing written for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import GateRefused
from tunegate_pipelines import form, local
from tunegate_pipelines.recipe import Recipe

RECIPES = Path(form.__file__).parent / "recipes"
RUNNER = CliRunner()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hopeless_learning_rate_exits_2_and_nothing_is_written(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["run", str(RECIPES / "demo.yaml"), "--set", "learning_rate=1e-1"])
    assert result.exit_code == 2
    assert "learning-rate" in result.stderr
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learning_rat=1e-4", "did you mean 'learning_rate'"),
        ("train.learning_rate=1e-4", "move them to the section 'run'"),
        ("r=-1", "recipe.train.r is out of range"),
        ("method=qlor", "did you mean 'qlora'"),
        ("dataset=", "recipe.run is incomplete"),
        ("dataset=7", "has the wrong type"),
        ("alias=../demo", "The alias '../demo' is not allowed"),
        ("registry=s3://bucket/models", "storage address"),
        ("registry=gs://no-such-bucket/models", "there is no such bucket"),
        ("checkpoint_uri=gs://no-such-bucket", "there is no such bucket"),
    ],
)
@pytest.mark.usefixtures("gcs_bucket")
def test_bad_recipe_exits_2_says_what_to_do_and_nothing_is_written(nowhere: Path, override: str, said: str) -> None:
    result = RUNNER.invoke(app, ["run", str(RECIPES / "demo.yaml"), "--set", override])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "to do:" in result.stderr
    assert list(nowhere.iterdir()) == []


def test_recipe_that_does_not_exist_exits_2(nowhere: Path) -> None:
    assert RUNNER.invoke(app, ["lint", "absent.yaml"]).exit_code == 2


def test_existing_output_is_refused_and_kept(nowhere: Path) -> None:
    (nowhere / "mine").mkdir()
    (nowhere / "mine" / "note").write_text("keep me")
    result = RUNNER.invoke(app, ["run", str(RECIPES / "demo.yaml"), "--output", "mine"])
    assert result.exit_code == 2
    assert (nowhere / "mine" / "note").read_text() == "keep me"


def test_existing_run_is_not_shown_as_this_ones(nowhere: Path, tiny_dataset: Path) -> None:
    shutil.copytree(tiny_dataset, nowhere / "mine" / "kfp" / "dataset")
    result = RUNNER.invoke(app, ["run", str(RECIPES / "demo.yaml"), "--output", "mine", "--json"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "page" not in result.stderr
    assert [path.name for path in (nowhere / "mine").iterdir()] == ["kfp"]


def test_report_that_cannot_be_made_does_not_hide_why_the_run_failed(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: Recipe, output: Path, console: Console) -> None:
        broken = output / "kfp" / "verdict" / "manifest.json"
        broken.parent.mkdir(parents=True)
        broken.write_text("{")
        raise GateRefused("The gate refused.", seen="FAIL", expected="PASS", remedy="look")

    monkeypatch.setattr(local, "_run", refuse)
    result = RUNNER.invoke(app, ["run", str(RECIPES / "demo.yaml"), "--output", "mine"])
    assert result.exit_code == 3
    assert "The gate refused." in result.stderr
    assert "the report cannot be made" in result.stdout


def test_lint_prints_one_json_document(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["lint", str(RECIPES / "demo.yaml"), "--json", "--set", "lora_alpha=16"])
    assert result.exit_code == 0
    assert "alpha-equals-r" in [finding["rule"] for finding in json.loads(result.stdout)["findings"]]


def test_lint_tells_a_person_what_to_do_and_what_was_not_checked(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["lint", str(RECIPES / "demo.yaml")])
    assert result.exit_code == 0
    assert "warning learning-rate" in result.stdout
    assert "to do: choose a learning_rate" in result.stdout
    assert "not checked: max-length (the demo's base model is made when the run starts)" in result.stdout
    assert list(nowhere.iterdir()) == []


def test_lint_prints_its_document_and_exits_2_on_an_error(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["lint", str(RECIPES / "demo.yaml"), "--json", "--set", "learning_rate=0.1"])
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert [(finding["rule"], finding["severity"]) for finding in said["findings"]] == [("learning-rate", "error")]
    assert [rule["rule"] for rule in said["unchecked"]] == ["max-length"]


def test_compile_writes_a_pipeline(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["compile", "--output", "out/finetune.yaml"])
    assert result.exit_code == 0
    assert yaml.safe_load((nowhere / "out" / "finetune.yaml").read_text())["pipelineInfo"]["name"] == "finetune"


def test_rollback_moves_the_alias_back_and_the_history_tells(registry: tuple[str, list[str]]) -> None:
    place, (first, second) = registry
    shown = json.loads(RUNNER.invoke(app, ["registry", "show", place, "champion", "--json"]).stdout)
    assert shown["version"] == second
    assert RUNNER.invoke(app, ["rollback", place, "champion", "--note", "too slow"]).exit_code == 0
    listed = json.loads(RUNNER.invoke(app, ["registry", "list", place, "--json"]).stdout)
    assert [(row["alias"], row["version"]) for row in listed] == [("champion", first)]
    history = json.loads(RUNNER.invoke(app, ["registry", "history", place, "champion", "--json"]).stdout)
    assert [row["action"] for row in history] == ["rollback", "promote", "promote"]
    assert history[0]["note"] == "too slow"


def test_alias_that_does_not_exist_exits_2(registry: tuple[str, list[str]]) -> None:
    result = RUNNER.invoke(app, ["registry", "show", registry[0], "absent"])
    assert result.exit_code == 2
    assert "no such alias" in result.stderr


def test_tables_for_people_name_the_version(registry: tuple[str, list[str]]) -> None:
    place, versions = registry
    for command in (["registry", "list", place], ["registry", "history", place, "champion"]):
        result = RUNNER.invoke(app, command, env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert versions[1] in result.stdout
