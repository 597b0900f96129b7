"""Per-row results: one line for each row that was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunegate.serve_check.compare import Compared

ROWS_NAME = "rows.parquet"


def write_rows(rows: Sequence[Compared], folder: Path) -> None:
    """Writes ``rows.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, real, truth = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    kinds: dict[str, Any] = {
        "row_id": text, "side": text, "outcome": text, "tokens": number, "certain_tokens": number,
        "served_token": number, "evaluated_token": number, "gap": real, "rendered": truth, "ended": truth,
        "kept": truth, "scores": pa.map_(text, real), "differences": pa.list_(real), "text": text,
    }  # fmt: skip
    lines = [
        {name: getattr(row, name) for name in kinds}
        | {"scores": [(score.metric, score.served) for score in row.scores]}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(lines, schema=pa.schema(list(kinds.items()))), folder / ROWS_NAME)
