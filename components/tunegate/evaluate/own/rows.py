"""A user's rows, with each template filled: what is asked, what is right, and the slices that a row belongs to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import ArtifactError, DataError
from tunegate.contracts.files import json_lines, sha256_json
from tunegate.evaluate.own.task_file import TaskFile
from tunegate.evaluate.own.templates import filled
from tunegate.evaluate.tags import tags_of
from tunegate.models.tool_calls import ground_truth_problem

_ID_CHARACTERS = 16


@dataclass(frozen=True)
class OwnRow:
    """A row that can be asked and scored.

    Attributes:
        row_id: unique in its file.
        turns: the messages before the answer; none where a text is scored without a prompt.
        answer: what is right; empty where the scorer alone knows.
        choices: what is chosen among; empty for other types.
        tags: ``column=value`` of each column that results are sliced by.
        fields: the row as it stands in the file.
    """

    row_id: str
    turns: tuple[Mapping[str, str], ...]
    answer: str
    choices: tuple[str, ...]
    tags: tuple[str, ...]
    fields: Mapping[str, Any]


def read_own_rows(task: TaskFile, data: bytes, *, where: str) -> tuple[OwnRow, ...]:
    """Every row of a task's data, in the order of their ids.

    Raises:
        DataError: naming each row that lacks what the task needs, and ids that come twice.
    """
    try:
        documents = json_lines(data, where=where)
    except ArtifactError as error:
        raise _unusable(task, where, list(error.items)) from error
    rows: list[OwnRow] = []
    problems: list[str] = [] if documents else ["the file is empty"]
    for number, fields in enumerate(documents, start=1):
        try:
            rows.append(_row(task, fields))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    twice = [row_id for row_id, count in Counter(row.row_id for row in rows).items() if count > 1]
    problems += [f"row id {row_id!r} comes more than once" for row_id in sorted(twice)]
    if problems:
        raise _unusable(task, where, problems)
    return tuple(sorted(rows, key=lambda row: row.row_id))


def _unusable(task: TaskFile, where: str, problems: Sequence[str]) -> DataError:
    return DataError(
        f"The task {task.name} cannot ask its rows.",
        seen=f"{len(problems)} problem(s) in {where}",
        expected="one JSON object a line, each with the columns that the task file names and an id of its own",
        remedy=f"correct these rows of {task.data}, or the task file",
        items=problems,
    )


def _row(task: TaskFile, fields: Mapping[str, Any]) -> OwnRow:
    """One row.

    Raises:
        ValueError: saying what it lacks.
    """
    turns = tuple({"role": role, "content": filled(text, fields)} for role, text in task.turns)
    if empty := [turn["role"] for turn in turns if not turn["content"].strip()]:
        raise ValueError(f"the {empty[0]}'s turn is empty")
    choices = _choices(task, fields)
    answer = filled(task.answer, fields)
    _check_answer(task, fields, answer, choices)
    return OwnRow(_row_id(task, fields), turns, answer, choices, tags_of(fields, task.tags), dict(fields))


def _row_id(task: TaskFile, fields: Mapping[str, Any]) -> str:
    if not task.row_id:
        return sha256_json(fields)[:_ID_CHARACTERS]
    found = fields.get(task.row_id)
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        raise ValueError(f"{task.row_id!r} is {found!r}, and names no row")
    return str(found)


def _choices(task: TaskFile, fields: Mapping[str, Any]) -> tuple[str, ...]:
    if task.type != "multiple_choice":
        return ()
    if isinstance(task.choices, str):
        found = fields.get(task.choices)
        if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
            raise ValueError(f"{task.choices!r} is no list of texts")
    else:
        found = [filled(text, fields) for text in task.choices]
    if len(found) < 2 or len(set(found)) < len(found) or not all(choice.strip() for choice in found):
        raise ValueError(f"choices {found!r}: at least two, each another, none empty")
    return tuple(found)


def _check_answer(task: TaskFile, fields: Mapping[str, Any], answer: str, choices: Sequence[str]) -> None:
    if task.type == "multiple_choice" and answer not in choices:
        raise ValueError(f"the answer {answer!r} is none of the choices {list(choices)!r}")
    if task.type == "json":
        try:
            json.loads(answer)
        except ValueError as error:
            raise ValueError(f"the answer {answer!r} is no JSON ({error}); try {{{{column | tojson}}}}") from error
    if task.type == "tool_call" and (problem := ground_truth_problem(fields)):
        raise ValueError(problem)
    if task.answer and not answer.strip():
        raise ValueError("the answer is empty")
