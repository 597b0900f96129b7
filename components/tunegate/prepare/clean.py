"""Rows that say the same again are left out: inside a side, then between what is trained on and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.prepare.duplicates import without_exact, without_near
from tunegate.prepare.overlap import Pair, find_overlap, without_overlap
from tunegate.prepare.rows import Candidate, Dropped
from tunegate.prepare.settings import PrepareSettings


@dataclass(frozen=True)
class Cleaned:
    """What is left of rows that can be trained on.

    Attributes:
        rows: in their order.
        dropped: the others, with why.
        found: the overlap between the sides before anything was left out for it.
        remaining: the overlap that is still there.
    """

    rows: list[Candidate]
    dropped: list[Dropped]
    found: list[Pair]
    remaining: list[Pair]


def clean(rows: Sequence[Candidate], settings: PrepareSettings) -> Cleaned:
    """Leaves out exact and near duplicates and, where the settings say so, rows that give an evaluation row away."""
    kept, exact = without_exact(rows)
    kept, near = without_near(kept, threshold=settings.near_duplicate_threshold)
    found = find_overlap(kept, threshold=settings.overlap_threshold)
    remaining, overlapping = found, list[Dropped]()
    while remaining and settings.overlap_strategy == "drop":  # fewer rows can make others stand out as alike
        kept, dropped = without_overlap(kept, remaining)
        overlapping += dropped
        remaining = find_overlap(kept, threshold=settings.overlap_threshold)
    return Cleaned(kept, [*exact, *near, *overlapping], found, remaining)
