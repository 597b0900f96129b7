"""The evaluation rows as the harness gets them: the prompt already rendered, exactly as training rendered it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import read_json_lines
from tunegate.contracts.manifest import EVALUATION_ROWS_NAME
from tunegate.evaluate.tags import tags_of
from tunegate.models.chat import ended_text, render, token_ids
from tunegate.models.tool_calls import TOOL_CALL, ground_truth_problem

COMPLETION_PERPLEXITY = "completion_perplexity"

#: The tasks that ask our own rows; every other name is a task of lm-evaluation-harness.
LOCAL_TASKS = (TOOL_CALL, COMPLETION_PERPLEXITY)

Row = dict[str, Any]
Document = dict[str, Any]


def read_rows(dataset: Path, *, limit: int) -> list[Row]:
    """The evaluation rows in the order of their ids, the first ``limit`` of them (0: all).

    Raises:
        DataError: when there are none.
    """
    rows = sorted(read_json_lines(dataset / EVALUATION_ROWS_NAME), key=lambda row: str(row["id"]))
    if not rows:
        raise DataError(
            f"{dataset} has no evaluation rows.",
            seen="evaluation.jsonl is empty",
            expected="at least one row",
            remedy="prepare the data set with a larger share of evaluation rows",
        )
    return rows[:limit] if limit else rows


def check_rows(rows: Sequence[Row], tasks: Sequence[str], tags: Sequence[str] = ()) -> None:
    """Refuses rows that a task cannot score or that lack a column to slice by, before a model is loaded.

    Raises:
        DataError: naming the rows and what each lacks.
    """
    without = [f"row {row['id']}: {problem}" for row in rows if (problem := _tags_problem(row, tags))]
    if without:
        raise DataError(
            "The results cannot be sliced by evaluate.tags.",
            seen=f"{len(without)} of {len(rows)} evaluation rows lack a column",
            expected=f"{', '.join(tags)} as columns of the data set, each a text, number or truth value",
            remedy="correct evaluate.tags, or add the column to every row",
            items=without,
        )
    if TOOL_CALL not in tasks:
        return
    problems = [f"row {row['id']}: {problem}" for row in rows if (problem := _tool_call_problem(row))]
    if problems:
        raise DataError(
            "The task tool_call cannot score these rows.",
            seen=f"{len(problems)} of {len(rows)} evaluation rows lack what scoring needs",
            expected="conversation rows with 'functions' and 'ground_truth' as columns beside 'messages'",
            remedy="add the columns to the data set, or leave tool_call out of evaluate.tasks",
            items=problems,
        )


def _tags_problem(row: Row, tags: Sequence[str]) -> str:
    try:
        tags_of(_fields(row), tags)
    except ValueError as error:
        return str(error)
    return ""


def _fields(row: Row) -> Mapping[str, Any]:
    fields = json.loads(row["fields"])
    return fields if isinstance(fields, dict) else {}


def _tool_call_problem(row: Row) -> str:
    if "prompt" not in row:
        return "a text row has no prompt to answer"
    fields = json.loads(row["fields"])
    return ground_truth_problem(fields) if isinstance(fields, dict) else "'fields' is not an object"


def documents(tokenizer: Any, rows: Sequence[Row], tags: Sequence[str] = ()) -> list[Document]:
    """Each row with ``row_id``, ``prompt_text``, ``completion_text``, their tokens, ``fields``, its slices
    and its conversation.

    Args:
        tags: columns of the data set by whose values results are sliced.
    """
    return [_document(tokenizer, row, tags) for row in rows]


def _document(tokenizer: Any, row: Row, tags: Sequence[str]) -> Document:
    rendered = _conversation(tokenizer, row) if "prompt" in row else _text(tokenizer, row)
    fields = _fields(row)
    return {
        **rendered,
        "fields": row["fields"],
        "tags": [*tags_of(fields, tags), *_call_tags(fields)],
        "conversation": str(row.get("conversation", "")),
    }


def _call_tags(fields: Mapping[str, Any]) -> list[str]:
    """How many parameters the right call's function has: where small models begin to fail."""
    if ground_truth_problem(fields):
        return []
    ((name, _),) = fields["ground_truth"][0].items()
    (function,) = (f for f in fields["functions"] if f["name"] == name)
    return [f"parameters={len(function.get('parameters', {}).get('properties', {}))}"]


def _conversation(tokenizer: Any, row: Row) -> Document:
    rendered = render(tokenizer, row["prompt"], row["completion"])
    return {
        "row_id": str(row["id"]),
        "prompt_text": rendered.prompt_text,
        "completion_text": rendered.completion_text,
        "prompt_tokens": len(rendered.prompt_ids),
        "completion_tokens": len(rendered.completion_ids),
        "question": "\n".join(turn["content"] for turn in row["prompt"] if turn["role"] == "user"),
        "expected": row["completion"][-1]["content"],
    }


def _text(tokenizer: Any, row: Row) -> Document:
    """A row of plain text with the end of the sequence that training appends.

    The harness puts the sequence's first token before it unless it is there, and scores what follows.
    """
    return {"row_id": str(row["id"]), **text_document(tokenizer, row["text"]), "question": "", "expected": row["text"]}


def text_document(tokenizer: Any, plain: str) -> Document:
    """A text that is scored without a prompt: its rendering and tokens."""
    text = ended_text(tokenizer, plain)
    ids = token_ids(tokenizer, text)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return {
        "prompt_text": "",
        "completion_text": text,
        "prompt_tokens": 1,
        "completion_tokens": len(ids) - (ids[0] == first),
    }


def check_completions(docs: Sequence[Document]) -> None:
    """Refuses rows without a token whose likelihood could be asked.

    Raises:
        DataError: naming the rows.
    """
    empty = [f"row {doc['row_id']}" for doc in docs if doc["completion_tokens"] < 1]
    if empty:
        raise DataError(
            "Some evaluation rows have nothing to score.",
            seen=f"{len(empty)} of {len(docs)} rows are empty, or only the token that starts a sequence",
            expected="a completion or text of at least one token",
            remedy="drop these rows from the data set",
            items=empty,
        )


def check_lengths(docs: Sequence[Document], *, context_tokens: int, new_tokens: int) -> None:
    """Refuses rows that the model could only see cut: the harness would cut them from the left without an error.

    Raises:
        DataError: naming the rows.
    """
    long = [
        f"row {doc['row_id']}: {doc['prompt_tokens']} prompt and {doc['completion_tokens']} completion tokens"
        for doc in docs
        if doc["prompt_tokens"] + max(doc["completion_tokens"], new_tokens) > context_tokens
    ]
    if long:
        raise DataError(
            "Some evaluation rows do not fit into the model's context.",
            seen=f"{len(long)} of {len(docs)} rows",
            expected=f"prompt and answer (up to {new_tokens} tokens) within {context_tokens} tokens",
            remedy="shorten the rows, drop them in prepare (max_length), or lower evaluate.max_new_tokens",
            items=long,
        )
