"""What a comparison is computed on: units that have nothing to do with one another, in an order that says nothing.

A unit is a row, or all rows that are turns of one conversation: what went before is in the prompt of what follows, so
they win and lose together, and a test that takes them for independent rows passes far too often. A conversation is
judged by the mean gain of its rows.

Betting takes the highest capital on the way, so what comes first weighs more: rows in the order of ids that follow the
difficulty would let a model at the margin through nearly always. Units are therefore ordered by the sha256 of their id,
salted with the digest of the ids of all of them: the same in every run, and no pattern in the ids survives. Somebody
who chooses the ids for this purpose, trying many, could still choose the order; so could he choose the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from tunegate.contracts.files import sha256_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """The gains of a comparison's units.

    Attributes:
        gains: shape (units,), in an order that has nothing to do with the values.
        worst: the least gain of a single row.
        grouped: whether a unit has more than one row, so that its gain is a mean.
    """

    gains: NDArray[np.float64]
    worst: float
    grouped: bool


def sample_of(gains: NDArray[np.float64], units: Sequence[str]) -> Sample:
    """The sample of some rows.

    Args:
        gains: shape (rows,).
        units: the unit of each row.
    """
    import numpy as np

    names = sorted(set(units))
    salt = sha256_json(names)
    names.sort(key=lambda name: sha256(f"{salt} {name}".encode()).digest())
    place = {name: index for index, name in enumerate(names)}
    of = np.array([place[unit] for unit in units])
    rows = np.bincount(of, minlength=len(names))
    means = np.bincount(of, weights=gains, minlength=len(names)) / rows
    return Sample(means, float(gains.min()), grouped=len(names) < len(units))
