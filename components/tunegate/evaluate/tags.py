"""Slices: ``column=value`` for each column that results are broken down by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def tags_of(fields: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """The slices that a row belongs to.

    Raises:
        ValueError: for a column that the row lacks, or whose value is no text, number, truth value or null.
    """
    return tuple(f"{column}={_value(fields, column)}" for column in columns)


def _value(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise ValueError(f"no column {column!r} to slice by")
    value = fields[column]
    if isinstance(value, list | dict):
        raise ValueError(f"{column!r} is a {type(value).__name__}, and names no slice")
    return value if isinstance(value, str) else json.dumps(value)
