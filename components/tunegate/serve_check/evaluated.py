"""What the evaluated model says of the served answers and of the given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.probe import ProbeRow
from tunegate.models.reading import Noise, Place, noise_of, read_rows
from tunegate.serve_check.answers import Answer


@dataclass(frozen=True)
class Read:
    """One answer, read by the evaluated model: its tokens, and the given ones."""

    answer: tuple[Place, ...]
    given: tuple[Place, ...]


def read_answers(
    model: Any, answers: Sequence[Answer], *, batch_size: int, noise_runs: int, progress: Progress
) -> tuple[list[Read], Noise]:
    """Reads every answer and given token; see :func:`~tunegate.models.reading.read_rows`.

    Args:
        model: the evaluated model.
        answers: what the server said.
        batch_size: rows that are computed together.
        noise_runs: how often the last bits are moved.
        progress: counts :func:`~tunegate.models.reading.runs_read` times the rows of :func:`rows_read`.
    """
    rows = rows_read(answers)
    places = read_rows(model, rows, batch_size=batch_size, noise_runs=noise_runs, progress=progress)
    return _by_answer(answers, places), noise_of(place for found in places for place in found)


def rows_read(answers: Sequence[Answer]) -> list[ProbeRow]:
    """The sequences that are read: each prompt with its answer, and with the tokens that were given."""
    rows = []
    for answer in answers:
        asked = answer.question
        rows += [
            ProbeRow(asked.row_id, (*asked.prompt_ids, *tokens), len(asked.prompt_ids))
            for tokens in (answer.token_ids, asked.given_ids)
            if tokens
        ]
    return rows


def _by_answer(answers: Sequence[Answer], places: Sequence[tuple[Place, ...]]) -> list[Read]:
    following = iter(places)
    return [
        Read(
            next(following) if answer.tokens else (),
            next(following) if answer.question.given_ids else (),
        )
        for answer in answers
    ]
