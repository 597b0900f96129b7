"""The task of a first recipe: held-out rows, asked and scored by what their answers are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.evaluate.measured import Asked
from tunegate.evaluate.overlap import find_matches
from tunegate.prepare.rows import Candidate
from tunegate_pipelines.init.chosen import MOST_ASKED, Chosen
from tunegate_pipelines.init.observed import Kind, Observed, columns_of, is_exchange, last_answer

#: Kind of answers → the type of a task file that scores them; calls are asked by the task ``tool_call`` itself.
TYPES: Mapping[Kind, str] = {
    "label": "exact_match", "short": "exact_match", "json": "json", "free": "perplexity", "text": "perplexity",
}  # fmt: skip

#: The columns of a task's rows; a data set's column of such a name is not carried over.
ID, SYSTEM, QUESTION, ANSWER = "id", "system", "question", "answer"

#: Fewer rows are no task: the conversations have several turns then.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class TaskRows:
    """A task of one's own, before it is written.

    Attributes:
        name: what the policy calls it.
        type: of the task file.
        rows: in the order of their ids, as they are written.
        system: whether there is a system message before each question.
        tags: columns by which results are sliced.
        left_out: held-out rows that are too like one that is trained on.
    """

    name: str
    type: str
    rows: tuple[Mapping[str, Any], ...]
    system: bool
    tags: tuple[str, ...]
    left_out: int


def task_name(stem: str) -> str:
    """A name that a policy can call a task by, made of a file's."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "held_out"
    return f"own_{name}" if name in LOCAL_TASKS else name


def held_out_task(observed: Observed, chosen: Chosen, *, name: str) -> TaskRows | None:
    """The held-out rows as a task of their own; None where a task file cannot ask them.

    The rows are those that prepare holds out by the hash of their prompt: none of them is ever trained on, however many
    rows are added to the data.
    """
    if observed.kind == "tool_call":
        return None
    held = chosen.of("evaluation")
    usable = [row for row in held if not row.example.messages or is_exchange(row.example)]
    with_system = [row for row in usable if len(row.example.messages) == 3]
    system = 2 * len(with_system) > len(usable)
    alike = [row for row in usable if (len(row.example.messages) == 3) == system]
    if len(alike) < _LEAST_SHARE * len(held):
        return None
    apart = _not_learned(alike, chosen, name)
    tags = tuple(column for column in observed.slices if column not in (ID, SYSTEM, QUESTION, ANSWER))
    rows = sorted((_row(row, system, tags) for row in apart), key=lambda row: str(row[ID]))
    return TaskRows(
        name=name,
        type=TYPES[observed.kind],
        rows=tuple(rows[:MOST_ASKED]),
        system=system,
        tags=(ANSWER, *tags) if observed.kind == "label" else tags,
        left_out=len(alike) - len(apart),
    )


def _not_learned(held: Sequence[Candidate], chosen: Chosen, name: str) -> list[Candidate]:
    """The rows in which evaluate finds none that is trained on: the gate would refuse the run for one."""
    learned = [document for side in ("train", "validation") for row in chosen.of(side) for document in row.documents()]
    kept = list(held)
    while True:
        asked = {row.id: Asked(_question(row), last_answer(row.example)) for row in kept}
        found = find_matches(learned, {name: asked}, threshold=chosen.prepare.overlap_threshold)
        if not found:
            return kept
        alike = {row_id for _, row_id in found}
        kept = [row for row in kept if row.id not in alike]


def _question(row: Candidate) -> str:
    turns = [message["content"] for message in row.example.messages if message["role"] == "user"]
    return "\n".join(turns) or row.example.text


def _row(row: Candidate, system: bool, tags: Sequence[str]) -> dict[str, Any]:
    example = row.example
    said = {SYSTEM: example.messages[0]["content"]} if system else {}
    asked = {QUESTION: _question(row)} if example.messages else {}
    columns = columns_of(example)
    return {ID: row.id, **said, **asked, ANSWER: last_answer(example), **{tag: columns[tag] for tag in tags}}
