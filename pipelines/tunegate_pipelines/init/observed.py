"""What there is to be seen in a person's rows: their format, their answers, their lengths."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunegate.contracts.errors import DataError
from tunegate.models.tool_calls import ground_truth_problem
from tunegate.prepare.formats import Example, convert, detect_format
from tunegate.prepare.read import Source
from tunegate.prepare.rows import Dropped
from tunegate.prepare.validate import answer_lengths, check_example

#: How answers can be scored: a call of a known function, one of a few labels, JSON, a few words; or, where no answer
#: is the only right one (``free``) or nothing is asked (``text``), by how likely the model finds it.
Kind = Literal["tool_call", "label", "json", "short", "free", "text"]

#: Of more rows than this only as many are rendered, from all over: that says enough of their lengths.
RENDERED_ROWS = 20_000

#: Labels: at most so many, each for so many rows on average, and so many characters.
_LABELS, _ROWS_A_LABEL, _LABEL_CHARACTERS = 50, 5, 80

#: Fewer rows tell nothing of how answers repeat.
_ENOUGH = 20

#: A short answer has so many characters, on one line.
_SHORT_CHARACTERS = 48

#: In so many of the answers what is said of all must hold: the others are mistakes.
_NEARLY_ALL = 0.98

#: A column slices results where it has so many values, each for so many rows on average; and so many such columns.
_SLICES, _ROWS_A_SLICE, _SLICE_COLUMNS = 8, 40, 3

#: Where no tokenizer is at hand: bytes of text a token, on the safe side, and what a template adds to a turn.
_BYTES_A_TOKEN, _TEMPLATE_TOKENS = 2.5, 12


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows looked at.

    Attributes:
        rows: prompt and answer together, of each answer that is trained on.
        prompt, answer: the longest of each.
        measured: with the base's tokenizer; otherwise estimated from the bytes.
    """

    rows: tuple[int, ...]
    prompt: int
    answer: int
    measured: bool


@dataclass(frozen=True)
class Observed:
    """What is seen in a data set.

    Attributes:
        format: of all rows.
        columns: of the first row.
        read: how many rows there are.
        examples: those that can be trained on.
        unusable: the others, with why.
        kind: see :data:`Kind`.
        labels: the answers, commonest first, where they are labels.
        several: conversations with more than one answer.
        slices: columns by whose values results can be sliced.
        lengths: in tokens.
    """

    format: str
    columns: tuple[str, ...]
    read: int
    examples: tuple[Example, ...]
    unusable: tuple[Dropped, ...]
    kind: Kind
    labels: tuple[str, ...]
    several: int
    slices: tuple[str, ...]
    lengths: Lengths


def observe(source: Source, tokenizer: Any | None) -> Observed:
    """Looks at every row.

    Args:
        source: the rows.
        tokenizer: the base's, with its chat template; None where it is not at hand: lengths are estimated then.

    Raises:
        DataError: for rows of no format or of several, or where no row can be trained on.
        ModelError: for a chat template that does not end the assistant's turn.
    """
    format_name = detect_format(source.rows)
    examples: list[Example] = []
    unusable: list[Dropped] = []
    lengths: list[tuple[int, int]] = []
    every = math.ceil(len(source.rows) / RENDERED_ROWS)
    for number, row in enumerate(source.rows):
        try:
            example = convert(row, format_name)
            check_example(example)
            lengths += _tokens_of(example, tokenizer) if number % every == 0 else []
        except DataError as error:
            unusable.append(Dropped(row.where, error.failed, error.seen))
        else:
            examples.append(example)
    if not examples:
        raise DataError(
            "No row can be trained on.",
            seen=f"{len(unusable)} rows of the format {format_name}",
            expected="rows with a question and an answer, or a text",
            remedy="correct the rows; what is wrong with the first is named",
            items=[f"{row.where}: {row.reason} ({row.detail})" for row in unusable],
        )
    kind = _kind(examples)
    return Observed(
        format=format_name,
        columns=tuple(source.rows[0].values),
        read=len(source.rows),
        examples=tuple(examples),
        unusable=tuple(unusable),
        kind=kind,
        labels=_by_frequency(last_answer(example) for example in examples) if kind == "label" else (),
        several=sum(len(example.answers) > 1 for example in examples),
        slices=_slices([columns_of(example) for example in examples]),
        lengths=_summed(lengths, measured=tokenizer is not None),
    )


def columns_of(example: Example) -> dict[str, Any]:
    """The columns of a row that its format does not read."""
    return dict(json.loads(example.fields))


def last_answer(example: Example) -> str:
    """What the assistant says last; a text's own text."""
    return example.messages[example.answers[-1]]["content"].strip() if example.messages else example.text


def is_exchange(example: Example) -> bool:
    """Whether it is one question, maybe behind a system message, and one answer."""
    return [message["role"] for message in example.messages][-2:] == ["user", "assistant"] and all(
        message["role"] == "system" for message in example.messages[:-2]
    )


def _kind(examples: Sequence[Example]) -> Kind:
    if not examples[0].messages:
        return "text"
    if all(not ground_truth_problem(columns_of(example)) for example in examples):
        return "tool_call"
    answers = [last_answer(example) for example in examples]
    if _nearly_all(_is_json(answer) for answer in answers):
        return "json"
    if len(answers) >= _ENOUGH and _are_labels(answers):
        return "label"
    if _nearly_all(len(answer) <= _SHORT_CHARACTERS and "\n" not in answer for answer in answers):
        return "short"
    return "free"


def _nearly_all(held: Iterable[bool]) -> bool:
    found = list(held)
    return sum(found) >= _NEARLY_ALL * len(found)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _are_labels(answers: Sequence[str]) -> bool:
    different = set(answers)
    few = 1 < len(different) <= min(_LABELS, len(answers) // _ROWS_A_LABEL)
    return few and all(len(answer) <= _LABEL_CHARACTERS and "\n" not in answer for answer in different)


def _by_frequency(answers: Iterable[str]) -> tuple[str, ...]:
    return tuple(answer for answer, _ in Counter(answers).most_common())


def _slices(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of few values, each of many rows: a language, a customer, a difficulty."""
    found = []
    for column in rows[0]:
        values = [row.get(column) for row in rows]
        if not all(isinstance(value, str | int) and value != "" for value in values):
            continue
        if 1 < len(set(values)) <= min(_SLICES, len(rows) // _ROWS_A_SLICE):
            found.append(column)
    return tuple(found[:_SLICE_COLUMNS])


def _summed(pairs: Sequence[tuple[int, int]], *, measured: bool) -> Lengths:
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    totals = tuple(prompt + answer for prompt, answer in pairs)
    return Lengths(totals, max(prompts, default=0), max(answers, default=0), measured)


def _tokens_of(example: Example, tokenizer: Any | None) -> list[tuple[int, int]]:
    """Prompt and answer of each row that an example becomes.

    Raises:
        DataError: for one that the chat template refuses, or with a special token in a turn.
    """
    if tokenizer is None:
        return _estimated(example)
    return [(length.prompt, length.completion) for length in answer_lengths(tokenizer, example)]


def _estimated(example: Example) -> list[tuple[int, int]]:
    if not example.messages:
        return [(0, _tokens(example.text))]
    each = [_tokens(message["content"]) + _TEMPLATE_TOKENS for message in example.messages]
    return [(sum(each[:index]), each[index]) for index in example.answers]


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / _BYTES_A_TOKEN)
