"""A row on its way through prepare: what it was, what it becomes, which side it is on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.files import sha256_json
from tunegate.models.similarity import Comparable, normalised
from tunegate.prepare.formats import Example
from tunegate.prepare.split import Side, side
from tunegate.prepare.validate import Length

_ID_CHARACTERS = 16
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: where it was, why (a reason that many can share), and what was seen."""

    where: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Candidate:
    """An example that passed every check.

    Attributes:
        example: the converted row.
        lengths: one for each trained answer (or text), by its index in the conversation.
        side: decided by the prompt alone.
        cut: how many of its rows training will cut at ``max_length``.
    """

    example: Example
    lengths: dict[int, Length]
    side: Side
    cut: int = 0

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of the content."""
        content = {"messages": self.example.messages} if self.example.messages else {"text": self.example.text}
        return sha256_json(content)[:_ID_CHARACTERS]

    @property
    def prompt(self) -> Comparable:
        """What it is asked: everything but the assistant's turns; the whole of a text."""
        return _comparable(self.example, lambda role: role != "assistant")

    @property
    def answer(self) -> Comparable:
        """What the assistant says; nothing for a text."""
        said = "\n".join(m["content"] for m in self.example.messages if m["role"] == "assistant")
        return Comparable(said, said)

    @property
    def everything(self) -> Comparable:
        """All turns, or the text."""
        return _comparable(self.example, lambda role: True)

    @property
    def exact_key(self) -> str:
        """Equal for rows that differ in white space or Unicode form alone."""
        turns = [[message["role"], normalised(message["content"])] for message in self.example.messages]
        return sha256_json(turns or normalised(self.example.text))

    def documents(self) -> list[dict[str, Any]]:
        """The rows as they are written: one for each trained answer, or the text.

        Evaluation rows say of which conversation they are turns: these win and lose together, so the gate judges a
        conversation, not its turns.
        """
        example = self.example
        if not example.messages:
            return [{"id": self.id, "text": example.text, "fields": example.fields}]
        several = len(example.answers) > 1
        whole = {"conversation": self.id} if several and self.side == "evaluation" else {}
        return [
            {
                "id": f"{self.id}-{turn}" if several else self.id,
                "prompt": list(example.messages[:index]),
                "completion": [example.messages[index]],
                "fields": example.fields,
                **whole,
            }
            for turn, index in enumerate(example.answers)
            if index in self.lengths
        ]


def _comparable(example: Example, included: Callable[[str], bool]) -> Comparable:
    if not example.messages:
        return Comparable(example.text, example.text)
    whole = [message for message in example.messages if included(message["role"])]
    own = [message for message in whole if message["role"] != "system"]
    return Comparable(*("\n".join(message["content"] for message in turns) for turns in (own, whole)))


def side_of(example: Example, *, validation_fraction: float, evaluation_fraction: float) -> Side:
    """The side of a conversation, decided by all that comes before its last answer; a text's by the text."""
    return side(
        example.messages[: example.answers[-1]] if example.messages else example.text,
        validation_fraction=validation_fraction,
        evaluation_fraction=evaluation_fraction,
    )


def shown(example: Example) -> str:
    """The beginning of an example, for a person."""
    text = json.dumps(example.messages, ensure_ascii=True) if example.messages else example.text
    return text[:_SHOWN_CHARACTERS] + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def lines(documents: list[dict[str, Any]]) -> bytes:
    """JSON Lines, keys in the given order."""
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()
