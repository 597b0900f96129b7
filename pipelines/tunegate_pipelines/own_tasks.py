"""A user's own task files in a recipe: looked at before anything is spent, and found by steps that run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.evaluate.own.task import is_task_file, read_definition

_SECTION, _SETTING = "evaluate", "tasks"


def check_own_tasks(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Reads every task file and its rows; a scorer is looked for where it runs.

    Args:
        sections: step → its settings, complete.

    Raises:
        SettingsError: for a task file that cannot be read or meant.
        DataError: naming the rows that it cannot ask.
    """
    for name in sections[_SECTION][_SETTING]:
        if is_task_file(name):
            read_definition(name)


def absolute_tasks(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A recipe's sections with the paths of task files made absolute, for steps on this machine."""
    given = dict(sections)
    if _SETTING in given.get(_SECTION, {}):
        tasks = [_absolute(name) for name in given[_SECTION][_SETTING]]
        given[_SECTION] = {**given[_SECTION], _SETTING: tasks}
    return given


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().resolve()) if is_task_file(name) and "://" not in name else name
