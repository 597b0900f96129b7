"""A local run that was interrupted, failed or killed goes on in its folder, and no other recipe does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunegate.contracts.errors import GateRefused, OutputExistsError, RunError
from tunegate_pipelines.recipe import Recipe
from tunegate_pipelines.stopping import stop_passed_on
from tunegate_pipelines.unfinished import MARK_NAME, folder_for, goes_on, under_way

RECIPE = Recipe({"base_model": "a", "dataset": "b"}, {"train": {"r": 4}})
OTHER = Recipe({"base_model": "a", "dataset": "b"}, {"train": {"r": 8}})


def _interrupted(output: Path) -> None:
    with pytest.raises(RunError), under_way(output, RECIPE):
        for name in ("kfp", "inputs", "checkpoints", "evaluations"):
            (output / name).mkdir()
            (output / name / "file").write_text(name)
        (output / "log.txt").write_text("first attempt")
        raise RunError("failed", seen="", expected="", remedy="")


def test_the_same_recipe_goes_on_with_checkpoints_inputs_and_log_and_makes_the_rest_anew(tmp_path: Path) -> None:
    _interrupted(tmp_path / "run")
    assert goes_on(tmp_path / "run", RECIPE)
    with under_way(tmp_path / "run", RECIPE):
        taken_over = {"inputs", "checkpoints", "evaluations", "log.txt", MARK_NAME}
        assert {path.name for path in (tmp_path / "run").iterdir()} == taken_over
        assert (tmp_path / "run/log.txt").read_text() == "first attempt"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"inputs", "log.txt"}


def test_another_recipe_or_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    _interrupted(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    for output, recipe in ((tmp_path / "run", OTHER), (tmp_path / "mine", RECIPE)):
        before = sorted(output.rglob("*"))
        with pytest.raises(OutputExistsError), under_way(output, recipe):
            pass
        assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("refused", [False, True])
def test_a_run_that_reached_its_verdict_is_not_run_again_in_its_folder(tmp_path: Path, refused: bool) -> None:
    with pytest.raises(GateRefused) if refused else under_way(tmp_path / "other", RECIPE):  # noqa: SIM117
        with under_way(tmp_path / "run", RECIPE):
            if refused:
                raise GateRefused("no", seen="", expected="", remedy="")
    assert not goes_on(tmp_path / "run", RECIPE)
    with pytest.raises(OutputExistsError), under_way(tmp_path / "run", RECIPE):
        pass


def _hold(output: Path, ready: object) -> None:
    with under_way(output, RECIPE):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_run_that_is_running_is_not_joined_and_one_that_was_killed_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "run", ready))
    holder.start()
    assert ready.wait(20)
    assert not goes_on(tmp_path / "run", RECIPE)
    with pytest.raises(OutputExistsError), under_way(tmp_path / "run", RECIPE):
        pass
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    assert goes_on(tmp_path / "run", RECIPE)


def test_the_same_command_goes_on_where_its_last_attempt_ended_and_a_new_run_gets_a_new_folder(tmp_path: Path) -> None:
    assert folder_for(tmp_path, "demo", RECIPE) == tmp_path / "demo"
    with under_way(tmp_path / "demo", RECIPE):
        pass
    assert folder_for(tmp_path, "demo", RECIPE) == tmp_path / "demo-2"
    _interrupted(tmp_path / "demo-2")
    assert folder_for(tmp_path, "demo", RECIPE) == tmp_path / "demo-2"
    assert folder_for(tmp_path, "demo", OTHER) == tmp_path / "demo-3"


def test_a_request_to_stop_reaches_the_step_behind_its_shell(tmp_path: Path) -> None:
    """The shell between the run and a step passes no signal on."""
    step = "import signal,sys;signal.signal(15,lambda *_:sys.exit(75));print(1,flush=True);signal.pause()"
    before = subprocess.Popen(["sleep", "60"])  # of somebody else in this process
    with stop_passed_on() as stop:
        child = subprocess.Popen(["sh", "-c", f"{sys.executable} -c '{step}'; exit $?"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.stdout.read() == b""  # until the step behind the shell has ended
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert child.wait(20) != 0
    assert before.poll() is None
    before.kill()
    before.wait()
