"""When a served answer is the evaluated one: the same tokens up to a tie, the same end, and how far off they are.

Rounding decides between two tokens that the evaluated model finds almost equally likely, and two engines round
differently. Up to the first place where its lead is no larger than rounding, the answers must be the same; behind a
place where they part, both continue something else and are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["same", "tie", "differs"]


@dataclass(frozen=True)
class Agreement:
    """A served answer against the evaluated one.

    Attributes:
        outcome: ``same`` as far as both go; ``tie``: other tokens from a place on where the evaluated model's lead is
            smaller than rounding; ``differs``: other tokens where it is not.
        tokens: how many tokens were compared, the first that is another one included.
        certain_tokens: at how many of them the evaluated model's lead is no smaller than rounding.
        apart: the place of the first that differ; None where none does.
    """

    outcome: Outcome
    tokens: int
    certain_tokens: int
    apart: int | None


def agreement(served: Sequence[int], evaluated: Sequence[int], gaps: Sequence[float], *, gap_floor: float) -> Agreement:
    """Holds an answer's tokens against the evaluated ones.

    Args:
        served: the tokens that the server answered.
        evaluated: the tokens that the evaluated model finds likeliest at these places, up to the first that differs at
            least.
        gaps: by how much log-probability each of these leads, in nats.
        gap_floor: a lead smaller than this may be rounding, in nats.
    """
    pairs = list(zip(served, evaluated, strict=False))
    apart = next((n for n, (token, best) in enumerate(pairs) if token != best), None)
    compared = gaps[: len(pairs) if apart is None else apart + 1]
    outcome: Outcome = "same" if apart is None else "tie" if gaps[apart] < gap_floor else "differs"
    return Agreement(outcome, len(compared), sum(gap >= gap_floor for gap in compared), apart)


def ends_as_evaluated(ids: Sequence[int], finish_reason: str, *, end_ids: Collection[int], max_tokens: int) -> bool:
    """Whether an answer ends at the first token that ends one, and otherwise exactly where it is cut."""
    if not ids or any(token in end_ids for token in ids[:-1]):
        return False
    if ids[-1] in end_ids:
        return finish_reason == "stop"
    return finish_reason == "length" and len(ids) == max_tokens


@dataclass(frozen=True)
class Sizes:
    """How large some differences are, in nats; None where one is no number, so that no limit holds for it.

    Attributes:
        tokens: of how many tokens.
        mean: their mean size.
        max: the largest.
    """

    tokens: int
    mean: float | None
    max: float | None


def sizes(differences: Sequence[float]) -> Sizes:
    """Mean and largest size of differences."""
    found = [abs(difference) for difference in differences]
    if not found or not all(math.isfinite(size) for size in found):
        return Sizes(len(found), None, None)
    return Sizes(len(found), math.fsum(found) / len(found), max(found))
