"""Probe rows: a few held-out rows on which models are compared token by token.

They are of the validation side: no model was trained on them, and they are not the rows that the gate judges on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import read_json_lines, sha256_json
from tunegate.contracts.manifest import VALIDATION_ROWS_NAME
from tunegate.models.chat import render, render_text


@dataclass(frozen=True)
class ProbeRow:
    """One row as tokens.

    Attributes:
        row_id: as in the data set.
        token_ids: prompt and completion, cut behind the last scored token.
        start: where the scored tokens begin, at least 1: each is predicted from all those before it.
    """

    row_id: str
    token_ids: tuple[int, ...]
    start: int

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The tokens that are predicted."""
        return self.token_ids[self.start :]


@dataclass(frozen=True)
class Probe:
    """The rows that are asked.

    Attributes:
        rows: in the order of their ids.
        passed_over: how many rows came before the last of these and left no token to score within the length.
    """

    rows: tuple[ProbeRow, ...]
    passed_over: int

    @property
    def scored_tokens(self) -> int:
        """Tokens that are predicted, of all rows."""
        return sum(len(row.scored_ids) for row in self.rows)

    @property
    def digest(self) -> str:
        """sha256 of the tokens: the same rows, rendered and cut the same way."""
        return sha256_json([[row.row_id, list(row.token_ids), row.start] for row in self.rows])


def read_probe(dataset: Path, tokenizer: Any, *, rows: int, max_length: int, max_scored_tokens: int) -> Probe:
    """The first ``rows`` validation rows in the order of their ids.

    Args:
        dataset: what prepare wrote.
        tokenizer: renders them, as in training.
        rows: how many; all, where there are fewer.
        max_length: tokens of prompt and completion; what lies behind is cut.
        max_scored_tokens: tokens of a completion that are scored; what lies behind is cut.

    Raises:
        DataError: when no row has a token to score within ``max_length``.
    """
    stored = sorted(read_json_lines(dataset / VALIDATION_ROWS_NAME), key=lambda row: str(row["id"]))
    found: list[ProbeRow] = []
    passed_over = 0
    for row in stored:
        if len(found) == rows:
            break
        tokens, start = _tokens(tokenizer, row)
        tokens = tokens[: min(max_length, start + max_scored_tokens)]
        if len(tokens) > start:
            found.append(ProbeRow(str(row["id"]), tuple(tokens), start))
        else:
            passed_over += 1
    if not found:
        raise DataError(
            "There is no row to compare models on.",
            seen=f"{len(stored)} validation rows, none with a token to score within {max_length} tokens",
            expected="at least one row whose prompt leaves room for its answer",
            remedy="raise max_length, or prepare the data set with a larger validation_fraction",
        )
    return Probe(tuple(found), passed_over)


def _tokens(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], int]:
    """A row's tokens, and where the scored ones begin; nothing precedes the first token of a text."""
    if "prompt" not in row:
        return render_text(tokenizer, row["text"]), 1
    rendered = render(tokenizer, row["prompt"], row["completion"])
    return [*rendered.prompt_ids, *rendered.completion_ids], max(len(rendered.prompt_ids), 1)
