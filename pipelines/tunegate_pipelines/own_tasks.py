"""A user's own task files in a recipe: looked at before anything is spent, and found by steps that run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.evaluate.own.scores import metrics_of_a_row
from tunegate.evaluate.own.task import is_task_file, read_definition

_SECTION, _SETTING = "evaluate", "tasks"


@dataclass(frozen=True)
class Asked:
    """A task file of a recipe, as far as it can be told before a run.

    Attributes:
        name: what the policy calls the task.
        metrics: what it measures of each row.
        rows: how many it has.
    """

    name: str
    metrics: Sequence[str]
    rows: int


def own_tasks(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Asked]:
    """Each task file in ``evaluate.tasks``, by its address there. Raises as :func:`check_own_tasks`."""
    found = {}
    for address in filter(is_task_file, sections[_SECTION][_SETTING]):
        file, rows = read_definition(address)
        found[address] = Asked(file.name, metrics_of_a_row(file.type), len(rows))
    return found


def named_tasks(sections: Mapping[str, Mapping[str, Any]], own: Mapping[str, Asked]) -> dict[str, Mapping[str, Any]]:
    """The sections with the name of each task in the place of its file, as the policy calls it."""
    tasks = [own[name].name if name in own else name for name in sections[_SECTION][_SETTING]]
    return {**sections, _SECTION: {**sections[_SECTION], _SETTING: tasks}}


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
