"""What was found of one task: its aggregates, the score of each row, and what each row asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ScoredRow:
    """One row's score in one metric.

    Attributes:
        row_id: the row's id; for a task of the harness, the digest of its document.
        score: higher is better unless the metric says otherwise (``nll`` is better when lower).
        prompt_digest: sha256 of the prompt as the model saw it.
        answer: what the model generated or chose; empty where only a likelihood is asked.
        tags: slices that the row belongs to, as ``column=value``.
        conversation: of which the row is one of several turns; empty where it stands alone.
    """

    row_id: str
    task: str
    metric: str
    score: float
    prompt_digest: str
    answer: str
    tags: tuple[str, ...] = ()
    conversation: str = ""


@dataclass(frozen=True)
class Asked:
    """What a row asks and what is right, in plain text: for people, and to be compared with what was trained on."""

    question: str
    expected: str


@dataclass(frozen=True)
class Noise:
    """How much the same model's results change when nothing but the batching does.

    Attributes:
        rows: how many rows were asked again.
        rows_at_once: in batches of how many, the second time.
        answers_changed: of how many of these the answer changed.
        scores_changed: metric → of how many the score changed.
        largest_change: metric → by how much at most.
    """

    rows: int
    rows_at_once: int
    answers_changed: int
    scores_changed: Mapping[str, int]
    largest_change: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """One task's results.

    Attributes:
        aggregates: metric → its value over all rows.
        rows: sorted by row and metric.
        asked: row id → what it asks.
        rows_at_once: the batch that fitted into memory.
        noise: None where it was not measured.
    """

    aggregates: Mapping[str, float]
    rows: tuple[ScoredRow, ...]
    asked: Mapping[str, Asked]
    rows_at_once: int
    noise: Noise | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measured:
        """What :meth:`to_json` wrote."""
        return cls(
            aggregates=document["aggregates"],
            rows=tuple(ScoredRow(**{**row, "tags": tuple(row["tags"])}) for row in document["rows"]),
            asked={row_id: Asked(**asked) for row_id, asked in document["asked"].items()},
            rows_at_once=document["rows_at_once"],
            noise=Noise(**document["noise"]) if document["noise"] else None,
        )
