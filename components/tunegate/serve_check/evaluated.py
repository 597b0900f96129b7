"""What the evaluated model says of the served answers and the given tokens, and how much of it is rounding.

The served answer is read, not generated again: up to the first token at which the two differ, what the evaluated model
would have written is what it finds likeliest behind the tokens that stand there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.likelihood import Scored, score
from tunegate.models.probe import ProbeRow
from tunegate.serve_check.answers import Answer
from tunegate.serve_check.noise import last_bits_moved

#: How often the largest gap that rounding moved is taken as the floor. The largest of what was measured is exceeded now
#: and then by what was not.
SAFETY = 2.0


@dataclass(frozen=True)
class Place:
    """What the evaluated model says at one place.

    Attributes:
        logprob: of the token that stands there, natural.
        best: the likeliest token.
        second: the next one.
        gap: by how much log-probability the likeliest leads.
    """

    logprob: float
    best: int
    second: int
    gap: float


@dataclass(frozen=True)
class Noise:
    """How far rounding moves what the evaluated model says.

    Attributes:
        gaps: by how much each leading token's lead moved, of every place and run.
        logprobs: by how much each standing token's log-probability moved, of every place and run.
    """

    gaps: tuple[float, ...]
    logprobs: tuple[float, ...]

    @property
    def gap_floor(self) -> float:
        """A lead smaller than this may be rounding."""
        return SAFETY * max(self.gaps, default=0.0)


@dataclass(frozen=True)
class Read:
    """One answer, read by the evaluated model: its tokens, and the given ones."""

    answer: tuple[Place, ...]
    given: tuple[Place, ...]


def read_answers(
    model: Any, answers: Sequence[Answer], *, batch_size: int, noise_runs: int, progress: Progress
) -> tuple[list[Read], Noise]:
    """Reads every answer and given token, in batches; then again row by row, and with the last bits moved.

    Args:
        model: the evaluated model.
        answers: what the server said.
        batch_size: rows that are computed together.
        noise_runs: how often the last bits are moved.
        progress: counts ``(2 + noise_runs)`` times the rows of :func:`rows_read`.
    """
    rows = rows_read(answers)
    places = [_places(scored) for scored in _counted(score(model, rows, batch_size=batch_size), progress)]
    gaps: list[float] = []
    logprobs: list[float] = []
    for run in range(1 + noise_runs):
        moved = last_bits_moved(model, seed=run) if run else contextlib.nullcontext()
        with moved:
            again = _counted(score(model, rows, batch_size=batch_size if run else 1), progress)
            for found, scored in zip(places, again, strict=True):
                _add_moves(found, scored, gaps, logprobs)
    return _by_answer(answers, places), Noise(tuple(gaps), tuple(logprobs))


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


def _counted(scored: Iterator[Scored], progress: Progress) -> Iterator[Scored]:
    for found in scored:
        yield found
        progress.advance()


def _places(scored: Scored) -> tuple[Place, ...]:
    import numpy as np

    found = []
    for values, token in zip(scored.log_probs, scored.row.scored_ids, strict=True):
        pair = np.argpartition(values, -2)[-2:]
        best, second = sorted((int(place) for place in pair), key=lambda place: (-values[place], place))
        found.append(Place(float(values[token]), best, second, float(values[best] - values[second])))
    return tuple(found)


def _add_moves(places: Sequence[Place], again: Scored, gaps: list[float], logprobs: list[float]) -> None:
    """Adds how far each gap and log-probability lies from where it was."""
    for place, values, token in zip(places, again.log_probs, again.row.scored_ids, strict=True):
        gaps.append(abs(float(values[place.best] - values[place.second]) - place.gap))
        logprobs.append(abs(float(values[token]) - place.logprob))


def _by_answer(answers: Sequence[Answer], places: Sequence[tuple[Place, ...]]) -> list[Read]:
    following = iter(places)
    return [
        Read(
            next(following) if answer.tokens else (),
            next(following) if answer.question.given_ids else (),
        )
        for answer in answers
    ]
