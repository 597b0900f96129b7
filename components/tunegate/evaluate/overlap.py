"""Tasks whose own rows were trained on: then the gate would judge memory.

Prepare keeps the data set's evaluation rows apart. A task of the harness or of a user's own brings rows that prepare
never saw: each is compared with every train and validation row, by what it asks, and by an answer that is too long to
be alike by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.files import read_json_lines, sha256_json
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.overlap import ANSWER_CHARACTERS
from tunegate.evaluate.measured import Asked
from tunegate.models.similarity import Comparable, Index, distinctive, same_text

#: How many rows of a task are named.
EXAMPLES = 8

#: The sides that training sees: validation rows count, for a run is chosen by them.
LEARNED = ("train.jsonl", "validation.jsonl")


def read_learned(dataset: Path) -> list[dict[str, Any]]:
    """The rows of a data set that training saw."""
    return [row for name in LEARNED if (dataset / name).is_file() for row in read_json_lines(dataset / name)]


def learned_digest(dataset: Manifest) -> str:
    """The name of what :func:`read_learned` reads."""
    return sha256_json({entry.path: entry.sha256 for entry in dataset.files if entry.path in LEARNED})


def find_overlap(
    learned: Sequence[Mapping[str, Any]], asked: Mapping[str, Mapping[str, Asked]], *, threshold: float
) -> dict[str, dict[str, Any]]:
    """How many rows of each task are among the learned ones.

    Args:
        learned: rows as prepare writes them.
        asked: task → row id → what it asks.
        threshold: similarity from which two rows are alike.

    Returns:
        task → ``exact``, ``near`` (a row counts once), and ``examples`` with the learned row that each is like.
    """
    matches = find_matches(learned, asked, threshold=threshold)
    return {task: _counted(task, matches) for task in asked}


def find_matches(
    learned: Sequence[Mapping[str, Any]], asked: Mapping[str, Mapping[str, Asked]], *, threshold: float
) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, row id) → the learned row that it is most like. See :func:`find_overlap`."""
    rows = [(task, row_id, one) for task, found in asked.items() for row_id, one in sorted(found.items())]
    matches = _matches(
        [(str(row["id"]), _said(row, "prompt")) for row in learned],
        [((task, row_id), one.question) for task, row_id, one in rows],
        threshold,
    )
    for place, match in _matches(
        [(str(row["id"]), text) for row in learned if len(text := _said(row, "completion")) >= ANSWER_CHARACTERS],
        [((task, row_id), one.expected) for task, row_id, one in rows if len(one.expected) >= ANSWER_CHARACTERS],
        threshold,
    ).items():
        matches.setdefault(place, {**match, "part": "completion"})
    return matches


def _said(row: Mapping[str, Any], part: str) -> str:
    if "text" in row:
        return str(row["text"])
    return "\n".join(
        turn["content"] for turn in row[part] if turn["role"] == ("assistant" if part == "completion" else "user")
    )


def _matches(
    learned: Sequence[tuple[str, str]], asked: Sequence[tuple[tuple[str, str], str]], threshold: float
) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, row id) → the learned row that it is most like, where that reaches the threshold."""
    held = [Comparable(text, text) for _, text in learned]
    texts = [Comparable(text, text) for _, text in asked]
    compared = distinctive([*held, *texts])
    index = Index(threshold)
    for number in range(len(held)):
        index.add(number, compared[number])
    found = {}
    for (place, _), text, shingles in zip(asked, texts, compared[len(held) :], strict=True):
        nearest = index.nearest(shingles)
        if nearest and text.text.strip():
            number, similarity = nearest
            exact = similarity == 1.0 and same_text(text, held[number])
            found[place] = {
                "row_id": place[1], "learned_id": learned[number][0], "part": "prompt",
                "kind": "exact" if exact else "near", "similarity": round(similarity, 4),
            }  # fmt: skip
    return found


def _counted(task: str, matches: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    mine = [match for (of, _), match in matches.items() if of == task]
    return {
        **{kind: _count(mine, kind) for kind in ("exact", "near")},
        "examples": sorted(mine, key=lambda match: (-match["similarity"], match["row_id"]))[:EXAMPLES],
    }


def _count(matches: Iterable[Mapping[str, Any]], kind: str) -> int:
    return sum(match["kind"] == kind for match in matches)
