"""What the rows on a page asked, and what would have been right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.files import read_json_lines
from tunegate.contracts.manifest import EVALUATION_ROWS_NAME


@dataclass(frozen=True)
class Question:
    """The last turn of a row's prompt, and its completion."""

    asked: str
    expected: str


def read_questions(dataset: Path, row_ids: Iterable[str]) -> dict[str, Question]:
    """The questions of some evaluation rows; a row that is not the data set's own (a harness task's) is left out."""
    wanted = set(row_ids)
    path = dataset / EVALUATION_ROWS_NAME
    found: dict[str, Question] = {}
    if not wanted or not path.is_file():
        return found
    for row in read_json_lines(path):
        if row.get("id") in wanted:
            expected = _last(row.get("completion")) or str(row.get("text", ""))
            found[row["id"]] = Question(_last(row.get("prompt")), expected)
    return found


def _last(turns: object) -> str:
    turn = turns[-1] if isinstance(turns, list) and turns else None
    return str(turn.get("content", "")) if isinstance(turn, dict) else ""
