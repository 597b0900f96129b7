"""What a vLLM server answers, read: models, and answers token by token.

A field that is missing or of another kind raises what the lookup raises; the client says what that means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN_ID = "token_id:"


@dataclass(frozen=True)
class ServedModel:
    """A model that a server lists.

    Attributes:
        name: what requests call it.
        root: the folder it was loaded from.
        parent: the model that it adapts, empty for one that stands alone.
        max_model_len: the longest prompt and answer together, in tokens; 0 where the server does not say (adapters).
    """

    name: str
    root: str
    parent: str
    max_model_len: int


@dataclass(frozen=True)
class Candidate:
    """A token that might have come at a place, with its natural log-probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of a prompt or an answer.

    Attributes:
        token_id: its id.
        logprob: its natural log-probability; None where it was not asked for, and for a prompt's first token.
        top: the most probable tokens at its place, the best first; empty where they were not asked for.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()

    @property
    def gap(self) -> float | None:
        """By how much log-probability the best candidate leads; None where fewer than two are known."""
        return self.top[0].logprob - self.top[1].logprob if len(self.top) > 1 else None


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: as the server decoded it, without special tokens.
        tokens: every token that was generated, the one that ended it included.
        prompt: the prompt's tokens, as the server saw them.
        finish_reason: ``stop`` or ``length``.
        model: who says that it answered; empty where that is not said.
    """

    text: str
    tokens: tuple[Token, ...]
    prompt: tuple[Token, ...]
    finish_reason: str
    model: str = ""


def read_models(answer: Any) -> tuple[ServedModel, ...]:
    """What ``/v1/models`` answers; the stable address of a fleet says no more than names and roots."""
    return tuple(
        ServedModel(card["id"], card["root"] or "", card.get("parent") or "", card.get("max_model_len") or 0)
        for card in answer["data"]
    )


def read_completion(answer: Any) -> Completion:
    """What ``/v1/completions`` answers."""
    (choice,) = answer["choices"]
    marks = choice["logprobs"]
    logprobs, tops = marks["token_logprobs"], marks["top_logprobs"]
    tokens = [
        Token(token_id, logprob, _best({int(name.removeprefix(_TOKEN_ID)): p for name, p in top.items()}))
        for token_id, logprob, top in zip(choice["token_ids"], logprobs, tops, strict=True)
    ]
    prompt_ids = choice["prompt_token_ids"]
    at_prompt = choice["prompt_logprobs"] or [None] * len(prompt_ids)
    prompt = [_prompt_token(token_id, known) for token_id, known in zip(prompt_ids, at_prompt, strict=True)]
    said = str(answer.get("model") or "")
    return Completion(choice["text"], tuple(tokens), tuple(prompt), choice["finish_reason"], said)


def _prompt_token(token_id: int, known: Mapping[str, Any] | None) -> Token:
    """A prompt's token with what is known at its place: nothing before the first one."""
    if known is None:
        return Token(token_id)
    found = {int(name): float(entry["logprob"]) for name, entry in known.items()}
    return Token(token_id, found[token_id], _best(found))


def read_chat(answer: Any) -> Completion:
    """What ``/v1/chat/completions`` answers."""
    (choice,) = answer["choices"]
    tokens = [
        Token(
            token_id,
            mark["logprob"],
            _best({int(top["token"].removeprefix(_TOKEN_ID)): top["logprob"] for top in mark["top_logprobs"]}),
        )
        for token_id, mark in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True)
    ]
    prompt = tuple(Token(token_id) for token_id in answer["prompt_token_ids"])
    return Completion(choice["message"]["content"] or "", tuple(tokens), prompt, choice["finish_reason"])


def _best(candidates: Mapping[int, float]) -> tuple[Candidate, ...]:
    """Candidates by falling log-probability, equal ones by their id."""
    return tuple(Candidate(*pair) for pair in sorted(candidates.items(), key=lambda pair: (-pair[1], pair[0])))
