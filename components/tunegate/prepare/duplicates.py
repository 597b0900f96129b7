"""Rows that say again what an earlier row of their side says."""

from __future__ import annotations

from collections.abc import Sequence

from tunegate.contracts.progress import Progress
from tunegate.models.similarity import Index, distinctive
from tunegate.prepare.rows import Candidate, Dropped
from tunegate.prepare.split import SIDES


def without_exact(rows: Sequence[Candidate]) -> tuple[list[Candidate], list[Dropped]]:
    """The first of each set of rows that differ in white space or Unicode form alone.

    Such rows have one prompt and so one side: the whole data set can be looked at at once.
    """
    first: dict[str, Candidate] = {}
    kept: list[Candidate] = []
    dropped: list[Dropped] = []
    for row in rows:
        earlier = first.setdefault(row.exact_key, row)
        if earlier is row:
            kept.append(row)
        else:
            dropped.append(Dropped(row.example.where, "exact duplicate", f"same as {earlier.example.where}"))
    return kept, dropped


def without_near(rows: Sequence[Candidate], *, threshold: float) -> tuple[list[Candidate], list[Dropped]]:
    """Rows less similar than ``threshold`` to every kept earlier row of their side; system messages are left out.

    A row is compared by everything it says, so the same question with another answer stays. Likeness *between* the
    sides is the business of :mod:`tunegate.prepare.overlap`.
    """
    compared = distinctive([row.everything for row in rows])
    indexes = {side: Index(threshold) for side in SIDES}
    progress = Progress("prepare", len(rows), "rows compared")
    kept: list[Candidate] = []
    dropped: list[Dropped] = []
    for number, (row, shingles) in enumerate(zip(rows, compared, strict=True)):
        found = indexes[row.side].nearest(shingles)
        if found is None:
            indexes[row.side].add(number, shingles)
            kept.append(row)
        else:
            earlier, similarity = rows[found[0]], found[1]
            detail = f"similarity {similarity:.2f} to {earlier.example.where}"
            dropped.append(Dropped(row.example.where, "near duplicate", detail))
        progress.advance()
    return kept, dropped
