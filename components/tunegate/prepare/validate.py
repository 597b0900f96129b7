"""What makes an example unfit for training: its turns, its text, and what is left of it as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from tunegate.contracts.errors import DataError, ModelError
from tunegate.models.chat import Rendered, render, render_text
from tunegate.prepare.formats import Example, Message

ROLES = ("system", "user", "assistant", "tool")

#: Which role may follow which; ``""`` is the beginning.
_MAY_FOLLOW: Mapping[str, tuple[str, ...]] = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

#: Characters that only a broken conversion leaves behind.
_BROKEN = {"\ufffd": "U+FFFD, the mark of a lost character", "\x00": "a NUL character"}


@dataclass(frozen=True)
class Length:
    """A row in tokens: all that the model sees, and those that carry labels before truncation."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


def _wrong(reason: str, seen: str, expected: str, remedy: str) -> DataError:
    return DataError(reason, seen=seen, expected=expected, remedy=remedy)


def check_example(example: Example) -> None:
    """Checks roles, their order, emptiness and encoding.

    Raises:
        DataError: its first sentence is the reason, the same for every row that is wrong in the same way.
    """
    if not example.messages:
        if not example.text.strip():
            raise _wrong("an empty text", "no characters but white space", "text to learn", "leave the row out")
        _check_encoding(example.text)
        return
    for message in example.messages:
        _check_message(message)
    _check_order([message["role"] for message in example.messages])


def _check_message(message: Message) -> None:
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise _wrong("an unknown role", repr(role), f"one of {', '.join(ROLES)}", "rename the role")
    if role in ("user", "assistant") and not content.strip():
        remedy = "leave the row out, or give the turn its text"
        raise _wrong(f"an empty {role} turn", repr(content), f"{role} turns with text", remedy)
    _check_encoding(content)


def _check_encoding(text: str) -> None:
    for character, name in _BROKEN.items():
        if character in text:
            at = text.index(character)
            remedy = "export the rows again from where the text was whole"
            raise _wrong("broken text", f"{name}, near {text[max(0, at - 20) : at + 20]!r}", "text in UTF-8", remedy)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        seen = f"half of a surrogate pair, U+{ord(text[error.start]):04X}"
        raise _wrong("broken text", seen, "text in UTF-8", "export the rows again from where it was whole") from error


def _check_order(roles: Sequence[str]) -> None:
    for before, role in pairwise(["", *roles]):
        if role not in _MAY_FOLLOW[before]:
            place = f"a {role} turn after a {before} turn" if before else f"a {role} turn at the beginning"
            raise _wrong(
                "turns out of order",
                place,
                f"after {before or 'the beginning'}: {' or '.join(_MAY_FOLLOW[before])}",
                "join turns that belong together; a system message stands once, at the beginning",
            )
    if roles[-1] != "assistant":
        raise _wrong(
            "a conversation that does not end with an answer",
            f"the last turn is the {roles[-1]}'s",
            "the assistant's turn at the end",
            "cut the turns after the last answer, or give the answer",
        )


def answer_lengths(tokenizer: Any, example: Example) -> list[Length]:
    """The length of each row that an example becomes: one for each trained answer, one for a text.

    Raises:
        DataError: when a turn holds a special token, or the chat template refuses the conversation.
        ModelError: when the chat template does not end the assistant's turn with the end-of-sequence token.
    """
    if not example.messages:
        return [Length(0, len(render_text(tokenizer, example.text)))]
    _refuse_special_tokens(tokenizer, example.messages)
    return [_length(tokenizer, example.messages[:index], example.messages[index]) for index in example.answers]


def _refuse_special_tokens(tokenizer: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        for token in tokenizer.all_special_tokens:
            if token in message["content"]:
                raise _wrong(
                    "a special token inside a turn",
                    f"{token!r} in a {message['role']} turn",
                    "plain text: a special token would end the turn early or begin another",
                    "remove it; if the rows were rendered already, give them as 'text'",
                )


def _length(tokenizer: Any, prompt: Sequence[Message], answer: Message) -> Length:
    from jinja2 import TemplateError

    try:
        rendered = render(tokenizer, prompt, [answer])
    except TemplateError as error:
        raise _wrong(
            "the chat template refuses the conversation",
            str(error)[:200],
            "turns that the base model's template can render",
            "change the turns, for example move a system message into the first user turn",
        ) from error
    _check_end_of_turn(tokenizer, rendered)
    return Length(len(rendered.prompt_ids), len(rendered.completion_ids))


def _check_end_of_turn(tokenizer: Any, rendered: Rendered) -> None:
    """Without it among the labels, the model never learns to stop. The template decides it, so no row can be blamed."""
    if tokenizer.eos_token_id not in rendered.completion_ids:
        raise ModelError(
            "The chat template does not end the assistant's turn with the end-of-sequence token.",
            seen=f"an answer that ends with {rendered.completion_text[-40:]!r}",
            expected=f"{tokenizer.eos_token!r} after it",
            remedy="set eos_token of the base model's tokenizer to the token that ends a turn in its template",
        )


def truncation(length: Length, max_length: int) -> Literal["fits", "cut", "lost"]:
    """What is left of a row that training cuts at ``max_length`` tokens: all, a part, or no label at all.

    TRL keeps the first ``max_length`` tokens. A label is the token *after* one that is seen: a text has none at its
    first token.
    """
    if length.total <= max_length:
        return "fits"
    return "cut" if max_length > max(length.prompt, 1) else "lost"
