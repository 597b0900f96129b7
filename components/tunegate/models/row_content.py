"""What a row says, whatever it is called: by this a held-out row is known again under another id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.contracts.files import sha256_json
from tunegate.models.similarity import normalised


def content_digest(row: Mapping[str, Any]) -> str:
    """sha256 of a prepared row's turns (or its text), whatever its id, its fields, white space and Unicode form."""
    if "prompt" not in row:
        return sha256_json(normalised(row["text"]))
    turns = [*row["prompt"], *row["completion"]]
    return sha256_json([[turn["role"], normalised(turn["content"])] for turn in turns])
