"""Local runs: addresses that steps elsewhere can use, and failures that say what happened."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from tunegate.contracts.errors import DataError, GateRefused, Interrupted, RunError, error_line
from tunegate_pipelines import addresses, local
from tunegate_pipelines.addresses import local_addresses, registry_made
from tunegate_pipelines.recipe import Recipe

POLICY = {
    "checks": [
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1},
    ]
}


def test_paths_become_absolute_and_names_of_a_hub_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    given = {"dataset": "rows.jsonl", "base_model": "org/name@abc", "registry": "runs/registry"}
    assert local_addresses(given, tmp_path) == {
        "dataset": str(tmp_path / "rows.jsonl"),
        "base_model": "org/name@abc",
        "registry": str(tmp_path / "runs" / "registry"),
    }


def test_registry_in_the_cloud_is_no_path(tmp_path: Path) -> None:
    assert local_addresses({"registry": "gs://bucket/models"}, tmp_path) == {"registry": "gs://bucket/models"}


def test_demo_rows_are_written_for_their_name_alone(tmp_path: Path) -> None:
    made = local_addresses({"dataset": "demo-wrong", "registry": "demo"}, tmp_path)
    assert Path(made["dataset"]).stat().st_size > 0
    assert not Path(made["registry"]).exists()
    assert {name for name, _ in addresses.DEMO} == {"base_model", "dataset"}


def test_registry_is_made_for_the_run_and_kept(tmp_path: Path) -> None:
    """Promote refuses one that is not there."""
    with pytest.raises(GateRefused), registry_made(str(tmp_path / "new" / "registry")):
        assert (tmp_path / "new" / "registry").is_dir()
        raise GateRefused("no", seen="", expected="", remedy="")
    assert (tmp_path / "new" / "registry").is_dir()


@pytest.mark.parametrize("held", [False, True])
def test_bad_input_leaves_no_registry_behind_that_was_not_there_or_used(tmp_path: Path, held: bool) -> None:
    registry = tmp_path / "new" / "registry"
    with pytest.raises(DataError), registry_made(registry.as_uri()):
        if held:
            (registry / "versions").mkdir()
        raise DataError("bad", seen="", expected="", remedy="")
    assert registry.exists() == held
    assert registry.parent.exists() == held


def test_registry_that_was_there_stays_though_it_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError), registry_made(str(tmp_path)):
        raise DataError("bad", seen="", expected="", remedy="")
    assert tmp_path.is_dir()


def test_step_that_dies_without_a_word_is_a_failed_run_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel kills a step for its memory."""

    def die(arguments: object, root: Path) -> None:
        print("21:12 - INFO - Executing task 'train'")
        print("    Killed by the kernel")
        print("21:12 - ERROR - Task 'train' finished with status FAILURE")
        print("------")

    monkeypatch.setattr(local, "_start", die)
    form = {"base_model": str(tmp_path), "dataset": str(tmp_path), "registry": str(tmp_path)}
    with pytest.raises(RunError) as caught:
        local.run_local(
            Recipe(form, {"gate": {"policy": POLICY}, "quantize": {"num_calibration_samples": 8}}),
            tmp_path / "out",
            Console(file=io.StringIO()),
        )
    assert caught.value.exit_code == 1
    assert "task train failed" in str(caught.value)
    assert "Killed by the kernel" in str(caught.value)
    assert "Killed by the kernel" in (tmp_path / "out" / "log.txt").read_text("utf-8")


def test_warning_of_the_lint_is_printed_and_on_the_page_of_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went wrong is where one looks for what was warned of."""
    screen = io.StringIO()

    def fail(arguments: object, root: Path) -> None:
        raise RunError("no", seen="", expected="", remedy="")

    monkeypatch.setattr(local, "_start", fail)
    form = {"base_model": "org/name@abc", "dataset": "org/rows@abc", "registry": str(tmp_path), "learning_rate": 4e-4}
    recipe = Recipe(form, {"gate": {"policy": POLICY}, "quantize": {"num_calibration_samples": 8}})
    with pytest.raises(RunError):
        local.run_local(recipe, tmp_path / "out", Console(file=screen))
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "warning learning-rate" in screen.getvalue()
    assert "learning-rate" in page
    assert "org/rows@abc" in page  # what was not checked, and why


@pytest.mark.parametrize("said", [True, False])
def test_interrupted_run_exits_75_says_how_to_go_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    """Whether the step that ran could still say so or not."""
    seen: list[str] = []

    def stop(arguments: dict[str, str], root: Path) -> None:
        seen.append(arguments["checkpoint_uri"])
        print("21:12 - INFO - Executing task 'train'")
        if len(seen) > 1:
            print("21:12 - INFO - Task 'train' finished with status SUCCESS")
            return
        step = subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), signal.SIGTERM)
        assert step.wait(20) == -signal.SIGTERM
        if said:
            print(error_line(Interrupted("Training stopped.", seen="SIGINT", expected="", remedy="run it again")))
        print("21:12 - ERROR - Task 'train' finished with status FAILURE")
        print("------")

    monkeypatch.setattr(local, "_start", stop)
    form = {"base_model": str(tmp_path), "dataset": str(tmp_path), "registry": str(tmp_path)}
    recipe = Recipe(form, {"gate": {"policy": POLICY}, "quantize": {"num_calibration_samples": 8}})
    with pytest.raises(Interrupted) as caught:
        local.run_local(recipe, tmp_path / "out", Console(file=io.StringIO()))
    assert caught.value.exit_code == 75
    assert caught.value.failed == ("Training stopped." if said else "The run was interrupted in train.")
    assert f"--output {tmp_path / 'out'}" in caught.value.remedy
    local.run_local(recipe, tmp_path / "out", Console(file=io.StringIO()))
    assert seen == [str(tmp_path / "out" / "checkpoints")] * 2
