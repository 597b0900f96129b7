"""Which side a row is on: decided by its own prompt alone, so that it never changes when rows are added."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from tunegate.models.similarity import normalised

Side = Literal["train", "validation", "evaluation"]

SIDES: tuple[Side, ...] = ("train", "validation", "evaluation")

#: How sure the rows named by :func:`rows_needed` make it that a side is not empty.
_CERTAINTY = 0.99


def position(prompt: Sequence[Mapping[str, str]] | str) -> float:
    """Where a prompt lies in [0, 1): the first 53 bits of the sha256 of its normalised messages (or text).

    Equal prompts lie at equal positions, so two answers to one question are always on one side.
    """
    turns = prompt if isinstance(prompt, str) else [[turn["role"], normalised(turn["content"])] for turn in prompt]
    canonical = json.dumps(normalised(turns) if isinstance(turns, str) else turns, ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def side(prompt: Sequence[Mapping[str, str]] | str, *, validation_fraction: float, evaluation_fraction: float) -> Side:
    """The side of a prompt. Evaluation lies lowest, so its rows do not depend on ``validation_fraction``."""
    where = position(prompt)
    if where < evaluation_fraction:
        return "evaluation"
    return "validation" if where < evaluation_fraction + validation_fraction else "train"


def rows_needed(fraction: float) -> int:
    """With how many distinct prompts a side of ``fraction`` has at least one row, in 99 of 100 data sets."""
    return math.ceil(math.log(1 - _CERTAINTY) / math.log(1 - fraction))
