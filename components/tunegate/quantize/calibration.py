"""Calibration rows: of the train side, of every task, rendered as training and serving render them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import read_json_lines, sha256_json
from tunegate.models.chat import render, render_text
from tunegate.models.row_content import content_digest
from tunegate.models.strata import stratified, task_of

_HELD_OUT = ("validation", "evaluation")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What calibrates.

    Attributes:
        row_ids: the rows, in the order they are used.
        token_ids: the tokens of each.
        truncated: how many rows were cut at ``max_length``.
        tasks: the task of each; empty for a row that names none.
    """

    row_ids: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    truncated: int
    tasks: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.token_ids))

    @property
    def contexts(self) -> int:
        """Tokens that differ in themselves or in what stands before them.

        A layer's input at a token is decided by the tokens up to it: the same beginning in every row is one input.
        """
        ordered = sorted(self.token_ids)
        return self.tokens - sum(_common(one, other) for one, other in itertools.pairwise(ordered))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def described(calibration: Calibration, *, max_length: int) -> dict[str, Any]:
    """What a model was calibrated on, as plain JSON types for ``quantize.json``."""
    lengths = sorted(map(len, calibration.token_ids))
    return {
        "rows": len(calibration.row_ids),
        "tokens": calibration.tokens,
        "contexts": calibration.contexts,
        "lengths": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "max_length": max_length,
        "truncated": calibration.truncated,
        "tasks": dict(sorted(Counter(calibration.tasks).items())),
        "rows_digest": sha256_json(sorted(calibration.row_ids)),
    }


def calibration_rows(dataset: Path, *, count: int) -> list[Row]:
    """``count`` calibration rows in the order of their ids, every task among them.

    Raises:
        DataError: when one is not a training row, is held out for validation or evaluation under its own id or another
            one, or there are too few.
    """
    rows = sorted(_rows(dataset, "calibration"), key=lambda row: str(row["id"]))
    if wrong := list(_wrong(dataset, rows)):
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
    return stratified(rows, count=count)


def _wrong(dataset: Path, rows: Sequence[Row]) -> Iterator[str]:
    """Each calibration row that should not be one, and why; one reason a row."""
    trained = {str(row["id"]): content_digest(row) for row in _rows(dataset, "train")}
    held = [(side, row) for side in _HELD_OUT for row in _rows(dataset, side)]
    by_id = {str(row["id"]): side for side, row in held}
    by_content = {content_digest(row): f"row {row['id']} of {side}" for side, row in held}
    seen: set[str] = set()
    for row in rows:
        own = str(row["id"])
        if own in by_id:
            yield f"row {own}: also in {by_id[own]}"
        elif (content := content_digest(row)) in by_content:
            yield f"row {own}: says what {by_content[content]} says"
        elif trained.get(own) != content:
            yield f"row {own}: not in train"
        elif own in seen:
            yield f"row {own}: twice"
        seen.add(own)


def _rows(dataset: Path, side: str) -> list[dict[str, Any]]:
    return read_json_lines(dataset / f"{side}.jsonl")


def render_calibration(tokenizer: Any, rows: Sequence[Row], *, max_length: int) -> Calibration:
    """The rows' tokens, prompt and completion, cut at ``max_length``."""
    rendered = [_tokens(tokenizer, row) for row in rows]
    return Calibration(
        row_ids=tuple(str(row["id"]) for row in rows),
        token_ids=tuple(tuple(ids[:max_length]) for ids in rendered),
        truncated=sum(len(ids) > max_length for ids in rendered),
        tasks=tuple(map(task_of, rows)),
    )


def _tokens(tokenizer: Any, row: Row) -> list[int]:
    if "prompt" not in row:
        return render_text(tokenizer, row["text"])
    conversation = render(tokenizer, row["prompt"], row["completion"])
    return [*conversation.prompt_ids, *conversation.completion_ids]


def check_enough_tokens(calibration: Calibration, *, widest: int) -> None:
    """Refuses a calibration set whose Hessian cannot have full rank, for GPTQ.

    A layer's Hessian is XᵀX over all calibration tokens: with fewer different inputs than the layer has, it is
    singular, and GPTQ's corrections are then made of the dampening alone.

    Raises:
        DataError: with the number of rows that would be enough.
    """
    contexts = calibration.contexts
    if contexts >= widest:
        return
    each = contexts / len(calibration.token_ids)
    raise DataError(
        "The calibration rows have too few tokens for a stable Hessian.",
        seen=f"{contexts} tokens in {len(calibration.token_ids)} rows, beginnings that rows share counted once",
        expected=f"at least {widest} tokens, the inputs of the widest layer",
        remedy=f"use at least {-(-widest // max(1, int(each)))} rows of this kind (quantize.num_calibration_samples), "
        "or an algorithm other than gptq",
    )
