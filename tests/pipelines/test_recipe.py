"""Recipes: one place for each setting, and errors that say which key was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import PolicyError, SettingsError
from tunegate_pipelines import form
from tunegate_pipelines.recipe import read_recipe, resolve

POLICY = {
    "checks": [
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1},
    ]
}
RECIPES = sorted((Path(form.__file__).parent / "recipes").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def sections(**steps: Any) -> dict[str, Any]:
    return {"gate": {"policy": POLICY}, **steps}


def test_run_form_reaches_each_step_it_belongs_to() -> None:
    resolved = resolve({"max_length": 200, "learning_rate": 3e-4, "alias": "tools"}, sections())
    assert resolved["prepare"]["max_length"] == resolved["train"]["max_length"] == 200
    assert resolved["train"]["learning_rate"] == 3e-4
    assert resolved["promote"]["alias"] == "tools"


def test_numbers_that_kfp_turned_into_doubles_are_still_whole() -> None:
    resolved = resolve({"r": 8.0}, sections(train={"per_device_train_batch_size": 2.0}))
    assert repr(resolved["train"]["r"]) == "8"
    assert repr(resolved["train"]["per_device_train_batch_size"]) == "2"


def test_each_default_of_the_run_form_is_the_settings_own() -> None:
    for parameter, places in form.FORM.items():
        default = form.default(parameter)  # raises where two settings that one parameter fills disagree
        assert all(getattr(form.SECTIONS[step], setting) == default for step, setting in places)


def test_setting_said_in_form_and_section_is_refused_naming_the_parameter() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({}, sections(train={"learning_rate": 1e-4}))
    assert "train.learning_rate is the run form's 'learning_rate'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("run: {learning_rat: 1e-4}\n", "learning_rate"),
        ("trian: {}\n", "train"),
    ],
)
def test_misspelt_key_is_refused_with_the_nearest(tmp_path: Path, text: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{near}'"):
        read_recipe(written(tmp_path, text))


def test_misspelt_setting_in_a_section_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'per_device_train_batch_size'"):
        resolve({}, sections(train={"per_device_train_batchsize": 4}))


def test_negative_rank_is_refused() -> None:
    with pytest.raises(SettingsError, match="out of range"):
        resolve({"r": -4}, sections())


def test_policy_that_cannot_be_judged_is_refused_before_training() -> None:
    with pytest.raises(PolicyError):
        resolve({}, {"gate": {"policy": {"checks": []}}})


@pytest.mark.parametrize("section", [{"weights": [50, 5, 100]}, {"replica": 2}, {"max_error_rate": 2}])
def test_deployment_that_would_be_refused_is_refused_before_training(section: dict[str, Any]) -> None:
    resolve({}, sections(deploy={"weights": [5, 50, 100], "replicas": 2}))
    with pytest.raises(SettingsError, match=r"deploy"):
        resolve({}, sections(deploy=section))


def test_run_section_pasted_into_the_kfp_form_is_refused_not_ignored() -> None:
    with pytest.raises(SettingsError, match="in the run form itself"):
        resolve({}, sections(run={"r": 8}))


@pytest.mark.parametrize(("written_as", "value"), [("1e-4", 1e-4), ("2.5E-5", 2.5e-5), ("0.001", 0.001)])
def test_small_number_is_a_number_however_it_is_written(tmp_path: Path, written_as: str, value: float) -> None:
    recipe = read_recipe(written(tmp_path, f"run: {{learning_rate: {written_as}}}\n"))
    assert recipe.form["learning_rate"] == value


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {r: 8}\ntrain: {optim: adamw_torch}\n")
    recipe = read_recipe(path, ["r=16", "train.warmup_steps=5", "dataset=rows.jsonl"])
    assert recipe.form == {"r": 16, "dataset": "rows.jsonl"}
    assert recipe.sections["train"] == {"optim": "adamw_torch", "warmup_steps": 5}


@pytest.mark.parametrize("override", ["r", "=4", "trian.optim=x", "unknown=4"])
def test_override_that_is_not_understood_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(SettingsError):
        read_recipe(written(tmp_path, "run: {}\n"), [override])


@pytest.mark.parametrize("text", ["- a list\n", "just text\n", "run: [1]\n", "run: {a: : b}\n"])
def test_file_that_is_no_recipe_is_refused_as_bad_input(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_passes_its_own_check(path: Path) -> None:
    from tunegate.preflight.lint import refuse
    from tunegate_pipelines.local import check_recipe

    refuse(check_recipe(read_recipe(path)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_are_wrong_on_exactly_the_sides_that_the_recipe_does_not_evaluate(path: Path) -> None:
    from tunegate_pipelines.demo.data import EVALUATION_FRACTION

    assert read_recipe(path).sections["prepare"]["evaluation_fraction"] == EVALUATION_FRACTION


def test_wrong_recipe_differs_from_the_demo_in_its_data_alone() -> None:
    right, wrong = (read_recipe(next(p for p in RECIPES if p.stem == name)) for name in ("demo", "demo-wrong"))
    assert right.sections == wrong.sections
    assert {k for k in right.form if right.form[k] != wrong.form[k]} == {"dataset"}
