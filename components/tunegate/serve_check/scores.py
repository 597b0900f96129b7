"""What served answers are worth: the evaluated rows scored again, by the scorer of their task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.models.tool_calls import TOOL_CALL, process_results

Score = Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, float]]

#: Each task that generates answers to the data set's rows → what scores a row by its ``fields`` and the answers. Higher
#: scores are better in all of them.
SCORERS: Mapping[str, Score] = {TOOL_CALL: process_results}


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation kept of one row.

    Attributes:
        task: the task that asked it.
        fields: the row's columns as JSON, from which it is scored.
        answer: what the evaluated model answered.
        scores: metric → its score.
    """

    task: str
    fields: str
    answer: str
    scores: Mapping[str, float]

    def score(self, answer: str) -> dict[str, float]:
        """Metric → what another answer to this row is worth."""
        return dict(SCORERS[self.task]({"fields": self.fields}, [answer]))


@dataclass(frozen=True)
class Rescored:
    """A row's score by one metric, as served and as evaluated."""

    metric: str
    served: float
    evaluated: float


def rescored(kept: Evaluated, answer: str) -> tuple[Rescored, ...]:
    """Every metric of a row, by the name that results have: ``tool_call.exact``."""
    served = kept.score(answer)
    return tuple(
        Rescored(f"{kept.task}.{metric}", served[metric], evaluated)
        for metric, evaluated in sorted(kept.scores.items())
    )


def means(rows: Sequence[Rescored]) -> dict[str, dict[str, float]]:
    """Metric → the number of rows, and the means as served and as evaluated."""
    found = {}
    for metric in sorted({row.metric for row in rows}):
        own = [row for row in rows if row.metric == metric]
        served, evaluated = (sum(getattr(row, side) for row in own) / len(own) for side in ("served", "evaluated"))
        found[metric] = {"rows": len(own), "served": served, "evaluated": evaluated}
    return found
