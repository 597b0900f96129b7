"""Training and validation rows that give an evaluation row away: then the gate would judge memory.

Prompts are compared, and answers that are too long to be alike by chance. Validation rows count as seen: a training run
is chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.contracts.overlap import ANSWER_CHARACTERS
from tunegate.models.similarity import Comparable, Index, Shingles, distinctive, same_text
from tunegate.prepare.rows import Candidate, Dropped


@dataclass(frozen=True)
class Pair:
    """A row that is trained on and the evaluation row it resembles.

    Attributes:
        learned, evaluation: where they came from.
        learned_id, evaluation_id: the ids of their conversations.
        part: ``prompt`` or ``completion``.
        kind: ``exact`` when the compared parts are the same text, else ``near``.
        similarity: Jaccard similarity.
    """

    learned: str
    evaluation: str
    learned_id: str
    evaluation_id: str
    part: str
    kind: str
    similarity: float


def find_overlap(rows: Sequence[Candidate], *, threshold: float) -> list[Pair]:
    """For each training or validation row the evaluation row most like it, where that reaches ``threshold``.

    A row is named once: by its prompt, or else by its answer.
    """
    prompts = distinctive([row.prompt for row in rows])
    pairs = _pairs(rows, prompts, [row.prompt for row in rows], "prompt", threshold)
    long = [row for row in rows if len(row.answer.text) >= ANSWER_CHARACTERS]
    answers = distinctive([row.answer for row in long])
    for where, pair in _pairs(long, answers, [row.answer for row in long], "completion", threshold).items():
        pairs.setdefault(where, pair)
    return [pairs[row.example.where] for row in rows if row.example.where in pairs]


def _pairs(
    rows: Sequence[Candidate],
    compared: Sequence[Shingles],
    texts: Sequence[Comparable],
    part: str,
    threshold: float,
) -> dict[str, Pair]:
    index = Index(threshold)
    for number, row in enumerate(rows):
        if row.side == "evaluation":
            index.add(number, compared[number])
    pairs: dict[str, Pair] = {}
    for number, row in enumerate(rows):
        found = index.nearest(compared[number]) if row.side != "evaluation" else None
        if found:
            held = rows[found[0]]
            same = found[1] == 1.0 and same_text(texts[number], texts[found[0]])
            pairs[row.example.where] = Pair(
                row.example.where, held.example.where, row.id, held.id, part,
                "exact" if same else "near", round(found[1], 4),
            )  # fmt: skip
    return pairs


def without_overlap(rows: Sequence[Candidate], pairs: Sequence[Pair]) -> tuple[list[Candidate], list[Dropped]]:
    """The rows without the training and validation rows of ``pairs``; evaluation rows all stay."""
    named = {pair.learned: pair for pair in pairs}
    kept = [row for row in rows if row.example.where not in named]
    dropped = [
        Dropped(
            pair.learned,
            f"{pair.kind} overlap with evaluation",
            f"{pair.part} similarity {pair.similarity:.2f} to {pair.evaluation}",
        )
        for pair in pairs
    ]
    return kept, dropped
