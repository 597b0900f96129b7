"""What prepare did, as numbers: for later steps, for a headline and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.prepare.overlap import Pair
from tunegate.prepare.rows import Candidate, Dropped
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.split import SIDES, Side

SCHEMA_VERSION = 1

#: How many dropped rows and pairs a profile lists; all are counted.
LISTED = 1000


@dataclass(frozen=True)
class Prepared:
    """Everything prepare decided.

    Attributes:
        format: the input rows' format.
        read: how many rows were read.
        rows: those that stay, in the order they were read.
        dropped: those that were left out.
        found: overlap before anything was dropped for it.
        remaining: overlap among ``rows``.
        calibration: the calibration rows, as they are written.
    """

    format: str
    read: int
    rows: Sequence[Candidate]
    dropped: Sequence[Dropped]
    found: Sequence[Pair]
    remaining: Sequence[Pair]
    calibration: Sequence[dict[str, Any]]

    def of(self, side: Side) -> list[Candidate]:
        """The rows of one side."""
        return [row for row in self.rows if row.side == side]


def profile(prepared: Prepared, settings: PrepareSettings, companions: Mapping[str, str]) -> dict[str, Any]:
    """The document ``profile.json``. ``overlap`` counts what *remains*: the gate judges it.

    Args:
        prepared: what prepare decided.
        settings: how.
        companions: file name → sha256 of the tokenizer that the rows were checked with.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "format": prepared.format,
        "rows": {"read": prepared.read, **{side: row_count(prepared, side) for side in SIDES},
                 "calibration": len(prepared.calibration)},
        "tokens": {side: _tokens(prepared.of(side)) for side in SIDES},
        "max_length": settings.max_length,
        "companions": dict(companions),
        "truncated_rows": sum(row.cut for row in prepared.rows),
        "roles": roles(prepared),
        "dropped": reasons(prepared),
        "dropped_rows": [asdict(row) for row in prepared.dropped[:LISTED]],
        "overlap": {
            **kinds(prepared.remaining),
            "pairs": [asdict(pair) for pair in prepared.remaining[:LISTED]],
            "threshold": settings.overlap_threshold,
            "strategy": settings.overlap_strategy,
            "found": kinds(prepared.found),
            "dropped": len(prepared.found) - len(prepared.remaining),
        },
    }  # fmt: skip


def row_count(prepared: Prepared, side: Side) -> int:
    """How many rows are written for a side: one for each answer."""
    return sum(len(row.lengths) for row in prepared.of(side))


def lengths(prepared: Prepared, side: Side) -> list[int]:
    """The tokens of each row of a side, before truncation."""
    return [length.total for row in prepared.of(side) for length in row.lengths.values()]


def _tokens(rows: Sequence[Candidate]) -> dict[str, Any]:
    totals = [length.total for row in rows for length in row.lengths.values()]
    completions = [length.completion for row in rows for length in row.lengths.values()]
    return {
        "total": sum(totals),
        "mean": round(sum(totals) / len(totals), 2) if totals else 0.0,
        "longest": max(totals, default=0),
        "completion": sum(completions),
    }


def roles(prepared: Prepared) -> dict[str, int]:
    """How many turns of each role stay."""
    return dict(sorted(Counter(turn["role"] for row in prepared.rows for turn in row.example.messages).items()))


def reasons(prepared: Prepared) -> dict[str, int]:
    """How many rows were left out for each reason, the most frequent first."""
    return dict(Counter(row.reason for row in prepared.dropped).most_common())


def kinds(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many rows overlap exactly, and how many nearly."""
    return {kind: sum(pair.kind == kind for pair in pairs) for kind in ("exact", "near")}


def summary(prepared: Prepared) -> Mapping[str, str | int | float]:
    """The headline: flat, numbers and strings."""
    remaining = kinds(prepared.remaining)
    return {
        "format": prepared.format,
        "rows_read": prepared.read,
        "rows_dropped": len(prepared.dropped),
        **{f"{side}_rows": row_count(prepared, side) for side in SIDES},
        "calibration_rows": len(prepared.calibration),
        "train_tokens": _tokens(prepared.of("train"))["total"],
        "overlap_exact": remaining["exact"],
        "overlap_near": remaining["near"],
    }
