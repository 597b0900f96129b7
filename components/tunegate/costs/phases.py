"""A measurement cut at what happened meanwhile: what requests saw before, between and after."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.costs.measurement import Measurement

#: What the time before the first mark is called.
BEFORE = "before"


@dataclass(frozen=True)
class Phase:
    """A part of a measurement.

    Attributes:
        name: the mark that it begins with.
        requests: how many were sent in it.
        failed: how many of them failed.
        first_token_ms: p50, p95 and the longest, of requests that were sent in it.
        gap_ms: the same of gaps between two tokens that ended in it, whenever their request was sent.
    """

    name: str
    requests: int
    failed: int
    first_token_ms: tuple[float, float, float]
    gap_ms: tuple[float, float, float]


def phases(measurement: Measurement) -> tuple[Phase, ...]:
    """Every phase in which something was asked, in the order of time."""
    ordered = sorted(measurement.marks.items(), key=lambda item: item[1])
    names, borders = [BEFORE, *(name for name, _ in ordered)], [at for _, at in ordered]
    sent: list[list[float]] = [[] for _ in names]
    gaps: list[list[float]] = [[] for _ in names]
    failed = [0 for _ in names]
    for one in measurement.asked:
        place = bisect.bisect_right(borders, one.at_seconds)
        if one.error:
            failed[place] += 1
            continue
        sent[place].append(one.first_token_ms)
        moment = one.at_seconds + one.first_token_ms / 1000
        for gap in one.gaps_ms:
            moment += gap / 1000
            gaps[bisect.bisect_right(borders, moment)].append(gap)
    return tuple(
        Phase(name, len(sent[i]) + failed[i], failed[i], _spread(sent[i]), _spread(gaps[i]))
        for i, name in enumerate(names)
        if sent[i] or failed[i]
    )


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and the longest, as the load generator computes percentiles; zeros of nothing."""
    import numpy as np

    if not values:
        return 0.0, 0.0, 0.0
    half, most = (float(value) for value in np.percentile(values, (50, 95)))
    return half, most, max(values)
