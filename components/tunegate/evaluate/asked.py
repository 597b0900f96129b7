"""What ``evaluate.tasks`` names: tasks on the data set's rows, tasks of a user's own, and tasks of the harness."""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.files import sha256_json
from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.evaluate.own.task import ENDINGS, OwnTask, is_task_file, read_own_task


@dataclass(frozen=True)
class Task:
    """A task that is asked.

    Attributes:
        name: what results, pages and policy call it.
        own: a user's task; None for others.
    """

    name: str
    own: OwnTask | None = None

    @property
    def on_dataset(self) -> bool:
        """Whether it asks the evaluation rows of the data set; other tasks bring rows of their own."""
        return self.name in LOCAL_TASKS

    @property
    def ours(self) -> bool:
        """Whether we render its prompts; otherwise the harness does."""
        return self.on_dataset or self.own is not None

    @property
    def made_of(self) -> Mapping[str, str]:
        """What of it is known by digests; nothing for a task of the harness, which its version names."""
        return self.own.made_of if self.own else {}

    def rows_digest(self, evaluation_rows: str) -> str:
        """The name of what it asks, given that of the data set's evaluation rows."""
        if self.on_dataset:
            return evaluation_rows
        return self.own.digest if self.own else sha256_json({"task of the harness": self.name})


def read_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """Reads every task that ``evaluate.tasks`` names.

    Raises:
        SettingsError: for a task that neither we nor the harness know (naming the nearest), one that is named twice, or
            a task file that cannot be read.
        DataError: for rows of a task file that cannot be asked.
    """
    tasks = tuple(Task(task.file.name, task) if task else Task(name) for name, task in _own(names))
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    taken = [task.name for task in tasks if task.own and task.on_dataset]
    if not tasks or twice or taken:
        raise SettingsError(
            "evaluate.tasks cannot be used.",
            seen=f"{', '.join(twice or taken)} {'more than once' if twice else 'is a task of tunegate'}"
            if tasks
            else "no task",
            expected="at least one task, each name once",
            remedy="name each once, and give tasks of your own other names"
            if tasks
            else f"for example: {LOCAL_TASKS[0]}",
        )
    if foreign := [task.name for task in tasks if not task.ours]:
        _check_foreign(foreign)
    return tasks


def _own(names: Sequence[str]) -> list[tuple[str, OwnTask | None]]:
    return [(name, read_own_task(name) if is_task_file(name) else None) for name in names]


def task_manager(folder: str | None = None) -> Any:
    """The harness's own, which knows the tasks of a folder and no others."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False)


@functools.cache
def known_tasks() -> Any:
    """The harness's own, which knows all of its tasks: reading their files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_foreign(names: Sequence[str]) -> None:
    known = [*LOCAL_TASKS, *known_tasks().all_tasks]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise SettingsError(
                f"evaluate.tasks names an unknown task: {name!r}.",
                seen=repr(name),
                expected=f"{', '.join(LOCAL_TASKS)}, a task of lm-evaluation-harness, or a task file ({ENDINGS[0]})",
                remedy=f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks lists what there is",
            )
