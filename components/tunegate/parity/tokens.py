"""Per-token results: one line for each pair and scored token, for whoever wants to look closer than the page does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tunegate.parity.compare import Difference

TOKENS_NAME = "tokens.parquet"


def write_tokens(found: Mapping[str, Difference], folder: Path) -> None:
    """Writes ``tokens.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [{"pair": pair, **asdict(token)} for pair, difference in found.items() for token in difference.tokens]
    text, number, real = pa.string(), pa.int64(), pa.float64()
    schema = pa.schema(
        [
            ("pair", text),
            ("row_id", text),
            ("position", number),
            ("kl", real),
            ("expected", number),
            ("reference_top", number),
            ("candidate_top", number),
            ("reference_probability", real),
            ("candidate_probability", real),
        ]
    )
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), folder / TOKENS_NAME)
