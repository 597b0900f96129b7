"""Probes out of answers that the evaluated model has read: whoever has that model makes them, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunegate.serving.agreement import agreement, sizes
from tunegate.serving.probes import Probe, Probes, ProbeToken


class Moved(Protocol):
    """How far rounding moved what is said at a place; :class:`tunegate.models.reading.Move` is one."""

    @property
    def best_logprob(self) -> float:
        """Of the likeliest token's log-probability, in nats, without its sign."""


class ReadPlace(Protocol):
    """What the evaluated model says at one place; :class:`tunegate.models.reading.Place` is one."""

    @property
    def best(self) -> int:
        """The likeliest token."""

    @property
    def best_logprob(self) -> float:
        """Its natural log-probability."""

    @property
    def gap(self) -> float:
        """By how much log-probability it leads."""

    @property
    def moves(self) -> Sequence[Moved]:
        """How far rounding moved it, one for each time that it was computed again."""


@dataclass(frozen=True)
class ReadAnswer:
    """An answer to a prompt, and what the evaluated model says at each of its places.

    Attributes:
        row_id: as in the data set.
        messages: the conversation, which a server renders itself; empty for plain text.
        text: a prompt of plain text; empty for a conversation.
        rendered_ids: what evaluation makes of messages or text.
        prompt_ids: what the answer continues.
        max_tokens: where an answer is cut.
        token_ids: the answer, with the token that ended it: a server's, or the evaluated model's own.
        places: of each of these tokens.
    """

    row_id: str
    messages: tuple[Mapping[str, str], ...]
    text: str
    rendered_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    max_tokens: int
    token_ids: tuple[int, ...]
    places: Sequence[ReadPlace]


def make_probes(model: str, answers: Sequence[ReadAnswer], *, gap_floor: float, end_ids: Collection[int]) -> Probes:
    """The probes of a model: what it says at each place of the answers, up to the first where it would part from one.

    Args:
        model: its content digest, under which it is served.
        answers: at least one with a token.
        gap_floor: a lead smaller than this may be rounding, in nats.
        end_ids: the tokens at which evaluation ends an answer.
    """
    known = [(answer, _known(answer, gap_floor)) for answer in answers]
    moved = [move.best_logprob for _, places in known for place in places for move in place.moves]
    rows = tuple(_probe(answer, places) for answer, places in known if places)
    return Probes(model, gap_floor, sizes(moved), tuple(sorted(end_ids)), rows)


def _known(answer: ReadAnswer, gap_floor: float) -> Sequence[ReadPlace]:
    """The places up to the first where both part: behind it the evaluated model would have written something else."""
    best, gaps = [place.best for place in answer.places], [place.gap for place in answer.places]
    return answer.places[: agreement(answer.token_ids, best, gaps, gap_floor=gap_floor).tokens]


def _probe(answer: ReadAnswer, places: Sequence[ReadPlace]) -> Probe:
    return Probe(
        row_id=answer.row_id,
        messages=answer.messages,
        text=answer.text,
        rendered_ids=answer.rendered_ids,
        prompt_ids=answer.prompt_ids,
        answer=tuple(ProbeToken(place.best, place.best_logprob, place.gap) for place in places),
        max_tokens=answer.max_tokens,
    )
