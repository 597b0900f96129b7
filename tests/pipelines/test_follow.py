"""Following a run: a person sees progress, news and errors, and none of kfp's dumps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tunegate.contracts.errors import DataError, GateRefused, TunegateError, error_line
from tunegate_pipelines.follow import Follower, PlainView, RunStopped, TerminalView, View, view_for


def followed(*, terminal: bool = False) -> tuple[Follower, io.StringIO, io.StringIO, View]:
    screen, log = io.StringIO(), io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200)
    view = view_for(console)
    return (
        Follower(log, view, frozenset({"train", "gate"}), {"evaluate-model-2": "evaluate quantized"}),
        screen,
        log,
        view,
    )


def an_error(cls: type[TunegateError] = DataError) -> TunegateError:
    return cls("Rows are bad.", seen="1", expected="2", remedy="mend", items=["row 3"])


LINES = [
    "21:12:14.412 - INFO - Executing task \x1b[96m'train'\x1b[0m\n",
    "    [KFP Executor 2026-11-23 21:12:14,567 INFO]: Got executor_input:\n",
    '    {"inputs": {"parameterValues": {"secret": 1}}}\n',
    "    [train] reading rows\n",
    "    [INFO] [stuff] a library talks\n",
    "    [train] 3/10 steps · loss 1.5 · 20s left\n",
    "21:12:14.595 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n",
]


@pytest.mark.parametrize("terminal", [False, True])
def test_news_and_progress_are_shown_and_dumps_are_not(terminal: bool) -> None:
    follower, screen, log, view = followed(terminal=terminal)
    for line in LINES:
        follower.write(line)
    view.close()
    shown = screen.getvalue()
    assert "reading rows" in shown
    assert "✓ train" in shown
    assert "KFP Executor" not in shown
    assert "parameterValues" not in shown
    assert "a library talks" not in shown
    assert log.getvalue() == "".join(LINES)
    if not terminal:
        assert "3/10 steps · loss 1.5 · 20s left" in shown


def test_bars_are_for_terminals_alone() -> None:
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), TerminalView)
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=False)), PlainView)


def test_carriage_returns_of_a_library_do_not_reach_the_log_as_one_endless_line() -> None:
    follower, _, log, _ = followed()
    follower.write("10%\r20%\r100%\n")
    assert log.getvalue() == "100%\n"


def test_error_crosses_the_process_with_its_exit_code_and_ends_the_run() -> None:
    follower, _, _, _ = followed()
    follower.write(f"    {error_line(an_error())}\n")
    assert isinstance(follower.error, DataError)
    assert follower.error.exit_code == 2
    assert follower.error.items == ("row 3",)
    with pytest.raises(RunStopped):
        follower.write("    ")


def test_refusal_lets_the_exit_handler_run() -> None:
    follower, _, _, _ = followed()
    follower.write(error_line(an_error(GateRefused)) + "\n")
    follower.write("21:12 - ERROR - Task 'refused' finished with status FAILURE\n")
    follower.write("21:12 - INFO - Executing task 'summarize'\n")
    assert isinstance(follower.error, GateRefused)


def test_crash_without_a_word_keeps_the_last_lines() -> None:
    follower, _, _, _ = followed()
    follower.write("21:12 - INFO - Executing task 'train'\n    Killed\n")
    follower.write("21:12 - ERROR - Task 'train' finished with status FAILURE\n")
    assert follower.failed_task == "train"
    assert "Killed" in follower.tail
    with pytest.raises(RunStopped):
        follower.write("---")


def test_second_task_of_one_component_is_shown_under_its_own_name() -> None:
    follower, screen, _, _ = followed()
    follower.write("21:12 - INFO - Executing task 'evaluate-model-2'\n")
    follower.write("21:12 - INFO - Task 'evaluate-model-2' finished with status SUCCESS\n")
    assert "✓ evaluate quantized" in screen.getvalue()


def test_no_task_is_started_after_a_request_to_stop_and_the_one_that_runs_may_end() -> None:
    view = view_for(Console(file=io.StringIO(), force_terminal=False))
    asked = False
    follower = Follower(io.StringIO(), view, frozenset(), {}, lambda: asked)
    follower.write("21:12 - INFO - Executing task 'train'\n")
    asked = True
    follower.write("    [train] keeping the last step\n")
    follower.write("21:12 - INFO - Task 'train' finished with status SUCCESS\n")
    with pytest.raises(RunStopped):
        follower.write("21:12 - INFO - Executing task 'merge'\n")
