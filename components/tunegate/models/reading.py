"""What a model says at each place of a given sequence, and how much of it is rounding.

An answer that was given elsewhere is read, not generated again: up to the first token at which the two differ, what
this model would have written is what it finds likeliest behind the tokens that stand there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.likelihood import Scored, score
from tunegate.models.probe import ProbeRow
from tunegate.models.rounding import last_bits_moved

#: The floor as a multiple of the largest lead that rounding was seen to overturn: what was measured is exceeded now and
#: then by what was not.
SAFETY = 2.0

#: Share of the moves of leads that must be small enough besides: where no lead was overturned, any may still be.
USUAL = 0.99


@dataclass(frozen=True)
class Move:
    """How far rounding moved what is said at a place, each in nats and without its sign.

    Attributes:
        gap: the lead of the likeliest token.
        logprob: of the token that stands there.
        best_logprob: of the likeliest token.
    """

    gap: float
    logprob: float
    best_logprob: float


@dataclass(frozen=True)
class Place:
    """What a model says at one place.

    Attributes:
        logprob: of the token that stands there, natural.
        best: the likeliest token.
        best_logprob: of the likeliest token, natural.
        second: the next one.
        gap: by how much log-probability the likeliest leads.
        moves: how far rounding moved it, one for each time that it was computed again.
    """

    logprob: float
    best: int
    best_logprob: float
    second: int
    gap: float
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True)
class Noise:
    """How far rounding moves what a model says.

    Attributes:
        gaps: by how much each leading token's lead moved, of every place and run.
        logprobs: by how much each standing token's log-probability moved, of every place and run.
        overturned: the leads that moved by no less than they are.
    """

    gaps: tuple[float, ...]
    logprobs: tuple[float, ...]
    overturned: tuple[float, ...] = ()

    @property
    def gap_floor(self) -> float:
        """A lead smaller than this may be rounding.

        The largest move of any lead would be no measure of it: a large one may move by nats and stay one. On SmolLM2 in
        FP8_DYNAMIC (1,017 places, 6 runs) the largest lead overturned was 1.95 nats, while one above 4 moved by 4.9.
        """
        import numpy as np

        usual = float(np.quantile(self.gaps, USUAL)) if self.gaps else 0.0
        return SAFETY * max(usual, *self.overturned, 0.0)


def noise_of(places: Iterable[Place]) -> Noise:
    """The noise at all these places together."""
    pairs = [(place, move) for place in places for move in place.moves]
    return Noise(
        gaps=tuple(move.gap for _, move in pairs),
        logprobs=tuple(move.logprob for _, move in pairs),
        overturned=tuple(place.gap for place, move in pairs if move.gap >= place.gap),
    )


def runs_read(noise_runs: int) -> int:
    """How often :func:`read_rows` reads each row."""
    return 2 + noise_runs


def read_rows(
    model: Any, rows: Sequence[ProbeRow], *, batch_size: int, noise_runs: int, progress: Progress
) -> list[tuple[Place, ...]]:
    """Reads the scored tokens of every row in batches; then again row by row, and with the last bits moved.

    Args:
        model: a causal language model of transformers, or PEFT's adapter on one.
        rows: what is read.
        batch_size: rows that are computed together.
        noise_runs: how often the last bits are moved.
        progress: counts :func:`runs_read` times the rows.

    Returns:
        for each row what the model says at each of its scored places.
    """
    places = [_places(scored) for scored in _counted(score(model, rows, batch_size=batch_size), progress)]
    moves: list[list[list[Move]]] = [[[] for _ in found] for found in places]
    for run in range(1 + noise_runs):
        moved = last_bits_moved(model, seed=run) if run else contextlib.nullcontext()
        with moved:
            again = _counted(score(model, rows, batch_size=batch_size if run else 1), progress)
            for found, told, scored in zip(places, moves, again, strict=True):
                _add_moves(found, scored, told)
    return [
        tuple(replace(place, moves=tuple(told)) for place, told in zip(found, of_row, strict=True))
        for found, of_row in zip(places, moves, strict=True)
    ]


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
        lead = float(values[best] - values[second])
        found.append(Place(float(values[token]), best, float(values[best]), second, lead))
    return tuple(found)


def _add_moves(places: Sequence[Place], again: Scored, moves: Sequence[list[Move]]) -> None:
    """Adds how far each place's gap and log-probabilities lie from where they were."""
    for place, values, token, told in zip(places, again.log_probs, again.row.scored_ids, moves, strict=True):
        told.append(
            Move(
                gap=abs(float(values[place.best] - values[place.second]) - place.gap),
                logprob=abs(float(values[token]) - place.logprob),
                best_logprob=abs(float(values[place.best]) - place.best_logprob),
            )
        )
