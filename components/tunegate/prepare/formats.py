"""Five ways to write a row, and the one that the later steps read.

=================  ===========================================  =====================================================
format             columns                                      becomes
=================  ===========================================  =====================================================
messages           messages: [{role, content}]                  one row for each assistant turn
prompt_completion  prompt, completion: text                     user turn, assistant turn (outer white space removed)
prompt_completion  prompt, completion: [{role, content}]        as given; the completion is one assistant turn
text               text                                         the text, without roles
alpaca             instruction, output, optional input, system  instruction, blank line, input as user; output as answer
sharegpt           conversations: [{from, value}], opt. system  human → user, gpt → assistant, then like messages
=================  ===========================================  =====================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.prepare.read import RawRow

Message = dict[str, str]

#: Format → the columns that it must have, in the order in which the formats are named to a person.
REQUIRED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
}

#: Format → columns that it reads where a row has them.
OPTIONAL_COLUMNS: Mapping[str, tuple[str, ...]] = {"alpaca": ("input", "system"), "sharegpt": ("system",)}

#: What people call the columns of ``prompt_completion``, commonest first.
_CALLED: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "input", "source", "context", "text"),
    "completion": ("completion", "answer", "response", "output", "target", "label", "summary"),
}

#: ShareGPT's names of the roles, after LLaMA-Factory and FastChat.
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "tool": "tool", "observation": "tool",
}  # fmt: skip

#: Columns that change what is trained, and that prepare does not carry into the rows.
_COLUMNS_WITH_MEANING = {
    "tools": "write the tools' signatures into the system message, and name the column otherwise to keep it as a field",
    "history": "write the earlier turns into 'messages'",
    "images": "leave out rows with images: this is for language models",
    "chosen": "make supervised rows from the chosen answers: preference training is not part of tunegate",
}

#: Keys of a message that change what is trained, likewise.
_MESSAGE_KEYS_WITH_MEANING = {
    "tool_calls": "write the call into 'content' as the text that the model shall produce",
    "function_call": "write the call into 'content' as the text that the model shall produce",
    "reasoning_content": "write the reasoning into 'content' as the chat template would render it",
    "thinking": "write the reasoning into 'content' as the chat template would render it",
    "weight": "leave out 'weight'; to train the last answer only, use prompt and completion",
    "train": "leave out 'train'; to train the last answer only, use prompt and completion",
}


@dataclass(frozen=True)
class Example:
    """One input row, converted: a conversation, or a text.

    Attributes:
        where: the place it came from.
        messages: the turns; empty for a text.
        answers: which of them are trained, by index.
        text: the text, where there are no turns.
        fields: JSON text of every column that the format does not read.
    """

    where: str
    messages: tuple[Message, ...]
    answers: tuple[int, ...]
    text: str
    fields: str


def detect_format(rows: Sequence[RawRow], *, stated: str = "auto") -> str:
    """The one format of all rows.

    Args:
        rows: all rows.
        stated: a format, or ``auto`` to tell it by the columns that are there and not null.

    Raises:
        DataError: when a row has the columns of no format or of several, or rows differ.
    """
    first: dict[str, RawRow] = {}
    for row in rows:
        fits = [name for name in REQUIRED_COLUMNS if stated in ("auto", name) and _has(row, REQUIRED_COLUMNS[name])]
        if len(fits) != 1:
            raise _no_single_format(row, fits, stated)
        first.setdefault(fits[0], row)
    if len(first) > 1:
        files = {row.file for row in first.values()}
        raise DataError(
            f"Formats are mixed in {files.pop()}." if len(files) == 1 else "Formats are mixed between the files.",
            seen=", ".join(first),
            expected="one format for all rows",
            remedy="convert the rows to one format, or prepare the files one by one",
            items=[f"{row.where}: {name} (columns {', '.join(row.values)})" for name, row in first.items()],
        )
    return next(iter(first))


def _has(row: RawRow, columns: Sequence[str]) -> bool:
    return all(row.values.get(column) is not None for column in columns)


def _no_single_format(row: RawRow, fits: Sequence[str], stated: str) -> DataError:
    columns = ", ".join(name for name, value in row.values.items() if value is not None) or "none"
    known = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in REQUIRED_COLUMNS.items())
    if fits:
        return DataError(
            f"{row.where} could be one of several formats.",
            seen=f"columns {columns}, which fit {' and '.join(fits)}",
            expected=f"columns of one format ({known})",
            remedy=f"say which is meant, for example 'format: {fits[0]}'; the other columns are kept as fields",
        )
    return DataError(
        f"{row.where} has no known format." if stated == "auto" else f"{row.where} is not of the format {stated!r}.",
        seen=f"columns {columns}",
        expected=f"the columns of a format ({known})" if stated == "auto" else ", ".join(REQUIRED_COLUMNS[stated]),
        remedy=f"rename the columns{_renamed(row)}; a column that is null counts as absent",
    )


def _renamed(row: RawRow) -> str:
    """How question and answer would have to be called, where they are there under another name."""
    found = {
        name: next((own for own in called if row.values.get(own) is not None), "") for name, called in _CALLED.items()
    }
    if not all(found.values()):
        return ""
    return ": " + " and ".join(f"{own} to {name}" for name, own in found.items() if own != name)


def convert(row: RawRow, format_name: str) -> Example:
    """A row as an :class:`Example`.

    Raises:
        DataError: its first sentence is the reason, the same for every row that is wrong in the same way.
    """
    for column, remedy in _COLUMNS_WITH_MEANING.items():
        if row.values.get(column):
            raise _wrong(f"a column '{column}', which training would not see", "a value", "no such column", remedy)
    read = {*REQUIRED_COLUMNS[format_name], *OPTIONAL_COLUMNS.get(format_name, ())}
    rest = {name: value for name, value in row.values.items() if name not in read}
    fields = json.dumps(rest, default=str)
    if format_name == "text":
        return Example(row.where, (), (), _text(row.values["text"], "text"), fields)
    messages = _CONVERTERS[format_name](row.values)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if format_name == "prompt_completion":
        answers = [len(messages) - 1]
    return Example(row.where, tuple(messages), tuple(answers), "", fields)


def _wrong(reason: str, seen: str, expected: str, remedy: str) -> DataError:
    return DataError(reason, seen=seen, expected=expected, remedy=remedy)


def _text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    raise _wrong(f"'{column}' is no text", type(value).__name__, "text", f"write '{column}' as a string")


def _messages(value: Any, column: str, *, role_key: str = "role", content_key: str = "content") -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        expected = f"a list of objects with '{role_key}' and '{content_key}'"
        raise _wrong(
            f"'{column}' is no list of messages", type(value).__name__, expected, f"write '{column}' as a list"
        )
    if not value:
        raise _wrong(
            "a conversation without turns", f"an empty '{column}'", "at least a question and an answer", "drop it"
        )
    return [_message(message, role_key, content_key) for message in value]


def _message(message: dict[str, Any], role_key: str, content_key: str) -> Message:
    for key, remedy in _MESSAGE_KEYS_WITH_MEANING.items():
        if message.get(key) not in (None, [], {}):
            seen = f"{key}: {str(message[key])[:80]}"
            raise _wrong(f"a message with '{key}', which training would not see", seen, "role and content", remedy)
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str) or not isinstance(content, str):
        raise _wrong(
            f"a message without '{role_key}' or '{content_key}' as text",
            f"{role_key}: {role!r}, {content_key}: {str(content)[:80]}",
            "both as strings",
            "write the content as one string: parts, images and null are not supported",
        )
    return {"role": role, "content": content}


def _from_messages(values: Mapping[str, Any]) -> list[Message]:
    return _messages(values["messages"], "messages")


def _from_prompt_completion(values: Mapping[str, Any]) -> list[Message]:
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _turns("", prompt.strip(), completion.strip())
    if isinstance(prompt, str) or isinstance(completion, str):
        raise _wrong(
            "'prompt' and 'completion' are of different kinds",
            f"{type(prompt).__name__} and {type(completion).__name__}",
            "both text, or both lists of messages",
            "write both in the same way",
        )
    answer = _messages(completion, "completion")
    if len(answer) != 1:
        raise _wrong(
            "a completion of several messages",
            f"{len(answer)} messages: {', '.join(message['role'] for message in answer)}",
            "one assistant message",
            "use the format 'messages': each assistant turn becomes a row",
        )
    return [*_messages(prompt, "prompt"), *answer]


def _from_alpaca(values: Mapping[str, Any]) -> list[Message]:
    parts = [_text(values["instruction"], "instruction"), _text(values.get("input") or "", "input")]
    question = "\n\n".join(part.strip() for part in parts if part.strip())
    return _turns(_text(values.get("system") or "", "system"), question, _text(values["output"], "output").strip())


def _from_sharegpt(values: Mapping[str, Any]) -> list[Message]:
    turns = _messages(values["conversations"], "conversations", role_key="from", content_key="value")
    system = _text(values.get("system") or "", "system")
    named = [{"role": SHAREGPT_ROLES.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in turns]
    return [{"role": "system", "content": system}, *named] if system.strip() else named


def _turns(system: str, question: str, answer: str) -> list[Message]:
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_CONVERTERS: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
}
