"""Calibration rows: of the train side, rendered as training and serving render them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import read_json_lines
from tunegate.models.chat import render, render_text

_HELD_OUT = ("validation", "evaluation")

Row = dict[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What GPTQ sees.

    Attributes:
        row_ids: the rows, in the order they are used.
        token_ids: the tokens of each.
        truncated: how many rows were cut at ``max_length``.
    """

    row_ids: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    truncated: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))


def calibration_rows(dataset: Path, *, count: int) -> list[Row]:
    """The first ``count`` calibration rows in the order of their ids.

    Raises:
        DataError: when one is not a training row or is held out for validation or evaluation, or there are too few.
    """
    rows = sorted(_rows(dataset, "calibration"), key=lambda row: str(row["id"]))
    ids = [str(row["id"]) for row in rows]
    trained = {str(row["id"]) for row in _rows(dataset, "train")}
    held = {str(row["id"]): side for side in _HELD_OUT for row in _rows(dataset, side)}
    wrong = [f"row {i}: also in {held[i]}" for i in ids if i in held]
    wrong += [f"row {i}: not in train" for i in ids if i not in trained and i not in held]
    wrong += [f"row {i}: twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    if wrong:
        raise DataError(
            "Calibration rows must come from the train side alone.",
            seen=f"{len(wrong)} of {len(rows)} calibration rows do not",
            expected="each calibration row once, in train.jsonl, and in no held-out side",
            remedy="prepare the data set again; a model calibrated on evaluation rows is scored too well",
            items=wrong,
        )
    if len(rows) < count:
        raise DataError(
            "There are too few calibration rows.",
            seen=f"{len(rows)} rows",
            expected=f"{count} rows (quantize.num_calibration_samples)",
            remedy="prepare the data set with more calibration rows, or lower quantize.num_calibration_samples",
        )
    return rows[:count]


def _rows(dataset: Path, side: str) -> list[Row]:
    return read_json_lines(dataset / f"{side}.jsonl")


def render_calibration(tokenizer: Any, rows: Sequence[Row], *, max_length: int) -> Calibration:
    """The rows' tokens, prompt and completion, cut at ``max_length``."""
    rendered = [_tokens(tokenizer, row) for row in rows]
    return Calibration(
        row_ids=tuple(str(row["id"]) for row in rows),
        token_ids=tuple(tuple(ids[:max_length]) for ids in rendered),
        truncated=sum(len(ids) > max_length for ids in rendered),
    )


def _tokens(tokenizer: Any, row: Row) -> list[int]:
    if "prompt" not in row:
        return render_text(tokenizer, row["text"])
    conversation = render(tokenizer, row["prompt"], row["completion"])
    return [*conversation.prompt_ids, *conversation.completion_ids]


def check_enough_tokens(calibration: Calibration, *, widest: int) -> None:
    """Refuses a calibration set whose Hessian cannot have full rank.

    A layer's Hessian is XᵀX over all calibration tokens: with fewer tokens than inputs it is singular, and GPTQ's
    corrections are then made of the dampening alone.

    Raises:
        DataError: with the number of rows that would be enough.
    """
    if calibration.tokens >= widest:
        return
    each = calibration.tokens / len(calibration.token_ids)
    raise DataError(
        "The calibration rows have too few tokens for a stable Hessian.",
        seen=f"{calibration.tokens} tokens in {len(calibration.token_ids)} rows",
        expected=f"at least {widest} tokens, the inputs of the widest layer",
        remedy=f"use at least {-(-widest // max(1, int(each)))} rows of this length (quantize.num_calibration_samples)",
    )
