"""What the rows that got worse share: the tags and the kinds of answer that are commoner among them than elsewhere.

A hint where to look, and no proof: what is said is only what chance would hardly bring about, were the worse rows drawn
from all rows at random (hypergeometric, Holm over everything that was looked at).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunegate.gate.comparison import holm
from tunegate.gate.rows import Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How probable it may be that anything is said of rows that share nothing.
ALPHA = 0.05

#: Fewer rows than this share nothing that could be told from chance.
LEAST_ROWS = 3

_TOLD = 5

#: What an answer can be like, beside the reference's: (answer, reference's answer) → whether it is.
_ANSWERS: dict[str, Callable[[str, str], bool]] = {
    "an empty answer": lambda one, other: not one.strip() and bool(other.strip()),
    "an answer less than half as long": lambda one, other: bool(one.strip()) and 2 * len(one) < len(other),
    "an answer more than twice as long": lambda one, other: len(one) > 2 * len(other) > 0,
    "the same answer, word for word": lambda one, other: one == other and bool(one),
}


def shared_by_worse(candidate: Series, reference: Series, gains: NDArray[np.float64]) -> tuple[str, ...]:
    """Sentences like ``difficulty=hard: 9 of the 12 rows that got worse, 30 of all 100``, the most telling first."""
    from scipy.stats import hypergeom

    worse = {i for i in range(len(gains)) if gains[i] < 0}
    if len(worse) < LEAST_ROWS or len(worse) == len(gains):
        return ()
    having = _having(candidate, reference)
    names = sorted(name for name, rows in having.items() if len(rows) < len(gains))
    p_values = [
        float(hypergeom.sf(len(having[name] & worse) - 1, len(gains), len(having[name]), len(worse))) for name in names
    ]
    telling = [n for n, is_telling in enumerate(holm(p_values, alpha=ALPHA)) if is_telling]
    telling.sort(key=lambda n: (p_values[n], names[n]))
    return tuple(_sentence(names[n], having[names[n]], worse, len(gains)) for n in telling[:_TOLD])


def _having(candidate: Series, reference: Series) -> dict[str, set[int]]:
    """Each tag and each kind of answer → the rows that have it."""
    found: dict[str, set[int]] = {}
    for index, tags in enumerate(candidate.tags):
        for tag in tags:
            found.setdefault(tag, set()).add(index)
    answers: Sequence[tuple[str, str]] = list(zip(candidate.answers, reference.answers, strict=True))
    for kind, holds in _ANSWERS.items():
        if rows := {i for i, (one, other) in enumerate(answers) if holds(one, other)}:
            found[kind] = rows
    return found


def _sentence(name: str, rows: set[int], worse: set[int], total: int) -> str:
    return f"{name}: {len(rows & worse)} of the {len(worse)} rows that got worse, {len(rows)} of all {total}"
