"""Every row converted and checked, and one answer for all that cannot be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.progress import Progress
from tunegate.prepare.formats import Example, convert
from tunegate.prepare.read import RawRow
from tunegate.prepare.rows import Candidate, Dropped, shown, side_of
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.validate import Length, answer_lengths, check_example, truncation

TOO_LONG = "longer than max_length"

_LOST = DataError(
    "every label lies behind max_length",
    seen="",
    expected="at least one token of the answer within max_length",
    remedy="raise max_length, or shorten the prompts",
)


@dataclass(frozen=True)
class _Invalid:
    where: str
    error: DataError
    seen: str

    def dropped(self) -> Dropped:
        return Dropped(self.where, self.error.failed, self.seen)


def check_rows(
    rows: Sequence[RawRow], format_name: str, tokenizer: Any, settings: PrepareSettings
) -> tuple[list[Candidate], list[Dropped]]:
    """Converts and checks every row.

    Returns:
        The rows that can be trained on, in their order, and those that the settings allow to be left out.

    Raises:
        DataError: for rows that cannot be trained on, or are too long, where the settings say ``raise``.
    """
    kept: list[Candidate] = []
    invalid: list[_Invalid] = []
    long: list[Dropped] = []
    progress = Progress("prepare", len(rows), "rows checked")
    for row in rows:
        progress.advance()
        try:
            example = convert(row, format_name)
            check_example(example)
            lengths = dict(zip(example.answers or (0,), answer_lengths(tokenizer, example), strict=True))
        except DataError as error:
            invalid.append(_Invalid(row.where, error, error.seen))
            continue
        fitting, lost = _within(lengths, settings)
        if lost and settings.excess_length_strategy == "truncate":
            invalid.append(_Invalid(row.where, _LOST, _seen(example, lost)))
        elif lost:
            long.append(Dropped(row.where, TOO_LONG, _seen(example, lost)))
        if fitting:
            kept.append(_candidate(example, fitting, settings))
    if invalid and settings.invalid_rows == "raise":
        raise _invalid_error(invalid, len(rows))
    if long and settings.excess_length_strategy == "raise":
        raise _too_long_error(long, len(rows), settings.max_length)
    return kept, [*(row.dropped() for row in invalid), *long]


def _within(lengths: Mapping[int, Length], settings: PrepareSettings) -> tuple[dict[int, Length], list[Length]]:
    """The answers that stay, and the lengths of those that do not."""
    stay = ("fits", "cut") if settings.excess_length_strategy == "truncate" else ("fits",)
    fitting = {key: length for key, length in lengths.items() if truncation(length, settings.max_length) in stay}
    return fitting, [length for key, length in lengths.items() if key not in fitting]


def _candidate(example: Example, fitting: dict[int, Length], settings: PrepareSettings) -> Candidate:
    return Candidate(
        example,
        fitting,
        side_of(
            example,
            validation_fraction=settings.validation_fraction,
            evaluation_fraction=settings.evaluation_fraction,
        ),
        cut=sum(truncation(length, settings.max_length) == "cut" for length in fitting.values()),
    )


def _seen(example: Example, lost: Sequence[Length]) -> str:
    worst = max(lost, key=lambda length: length.total)
    return f"{worst.total} tokens, {worst.prompt} of them the prompt: {shown(example)}"


def _invalid_error(invalid: Sequence[_Invalid], total: int) -> DataError:
    counts = Counter(row.error.failed for row in invalid)
    first = {row.error.failed: row.error for row in reversed(invalid)}
    return DataError(
        f"{len(invalid)} of {total} rows cannot be trained on.",
        seen=", ".join(f"{count} × {reason}" for reason, count in counts.most_common()),
        expected="; ".join(dict.fromkeys(first[reason].expected for reason in counts)),
        remedy="; ".join(dict.fromkeys(first[reason].remedy for reason in counts))
        + "; or set 'invalid_rows: drop' to leave these rows out, counted",
        items=[f"{row.where}: {row.error.failed}: {row.seen}" for row in invalid],
    )


def _too_long_error(long: Sequence[Dropped], total: int, max_length: int) -> DataError:
    return DataError(
        f"{len(long)} of {total} rows are longer than max_length.",
        seen=f"{len(long)} rows beyond {max_length} tokens",
        expected=f"at most {max_length} tokens, prompt and completion together",
        remedy="raise max_length, shorten the rows, or set 'excess_length_strategy: drop' (or truncate)",
        items=[f"{row.where}: {row.detail}" for row in long],
    )
