"""One answer against the evaluated model: the same tokens up to a tie, the same end, the same rendering."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tunegate.models.reading import Place
from tunegate.serve_check.answers import Answer
from tunegate.serve_check.evaluated import Read
from tunegate.serve_check.questions import Side
from tunegate.serve_check.scores import Rescored, rescored
from tunegate.serving.agreement import Outcome, agreement, ends_as_evaluated


@dataclass(frozen=True)
class Compared:
    """A row's answer as served, against what was evaluated.

    Attributes:
        row_id: as in the data set.
        side: validation, or evaluation.
        outcome: ``same`` to the end; ``tie``: other tokens from a place on where the evaluated model's lead is smaller
            than rounding; ``differs``: other tokens where it is not.
        tokens: how many tokens were compared, the first that is another one included.
        certain_tokens: at how many of them the evaluated model's lead is no smaller than rounding.
        served_token, evaluated_token: the first that differ; None where none does.
        gap: the evaluated model's lead there, in nats; None where none differs.
        rendered: whether the server made the evaluated prompt of the row's messages.
        ended: whether the answer ends where evaluation ends one.
        kept: whether its text is the one that was evaluated; None where none was kept.
        scores: what the served answer is worth beside the evaluated one, by each metric; none where none was kept.
        differences: of each log-probability, given and answered, served − evaluated, in nats.
        text: the served answer.
    """

    row_id: str
    side: Side
    outcome: Outcome
    tokens: int
    certain_tokens: int
    served_token: int | None
    evaluated_token: int | None
    gap: float | None
    rendered: bool
    ended: bool
    kept: bool | None
    scores: tuple[Rescored, ...]
    differences: tuple[float, ...]
    text: str


def compare(answer: Answer, read: Read, *, gap_floor: float, end_ids: Collection[int], text: str) -> Compared:
    """Holds one served answer against the evaluated model.

    Tokens behind a first difference are not compared: they continue something else.

    Args:
        answer: what the server said.
        read: what the evaluated model says at the same places.
        gap_floor: a lead smaller than this may be rounding, in nats.
        end_ids: the tokens at which evaluation ends an answer.
        text: what the answer's tokens say, decoded as evaluation does.
    """
    ids, places, kept = answer.token_ids, read.answer, answer.question.kept
    found = agreement(ids, [place.best for place in places], [place.gap for place in places], gap_floor=gap_floor)
    other = None if found.apart is None else places[found.apart]
    return Compared(
        row_id=answer.question.row_id,
        side=answer.question.side,
        outcome=found.outcome,
        tokens=found.tokens,
        certain_tokens=found.certain_tokens,
        served_token=None if found.apart is None else ids[found.apart],
        evaluated_token=None if other is None else other.best,
        gap=None if other is None else other.gap,
        rendered=answer.rendered_ids == answer.question.rendered_ids,
        ended=ends_as_evaluated(ids, answer.finish_reason, end_ids=end_ids, max_tokens=answer.question.max_tokens),
        kept=None if kept is None else text == kept.answer,
        scores=() if kept is None else rescored(kept, text),
        differences=(*_given(answer, read.given), *_answered(answer, places[: found.tokens])),
        text=text,
    )


def _given(answer: Answer, places: Sequence[Place]) -> list[float]:
    return [served - place.logprob for served, place in zip(answer.given_logprobs, places, strict=True)]


def _answered(answer: Answer, compared: Sequence[Place]) -> list[float]:
    """Of every token that was compared: the same tokens stand before each, so that a first other one counts too."""
    return [
        (float("nan") if token.logprob is None else token.logprob) - place.logprob
        for token, place in zip(answer.tokens, compared, strict=False)
    ]
