"""What the server says: what it makes of a conversation, how it answers, and how likely it finds given tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.contracts.progress import Progress
from tunegate.serve_check.questions import Question
from tunegate.serving.answers import Token
from tunegate.serving.client import Client
from tunegate.serving.probes import rendered_ids
from tunegate.serving.together import asked_together


@dataclass(frozen=True)
class Answer:
    """A question, answered.

    Attributes:
        question: what was asked.
        rendered_ids: the prompt that the server itself made of the row's messages or text.
        tokens: the greedy answer to the question's own prompt ids, with the token that ended it.
        text: the same, decoded by the server.
        finish_reason: ``stop`` or ``length``.
        given_logprobs: of each given token, natural.
        first_token_seconds: how long the first token took, the prompt being new to the server.
        answer_seconds: how long the whole answer took.
    """

    question: Question
    rendered_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    text: str
    finish_reason: str
    given_logprobs: tuple[float, ...]
    first_token_seconds: float
    answer_seconds: float

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's tokens."""
        return tuple(token.token_id for token in self.tokens)


def ask(
    client: Client, served_name: str, questions: Sequence[Question], progress: Progress, *, at_once: int = 1
) -> list[Answer]:
    """Asks a server every question.

    Args:
        client: asks it.
        served_name: what it calls the model.
        questions: what to ask.
        at_once: how many questions are under way at the same time.
        progress: counts them.

    Raises:
        InputError: when the server refuses a question.
        RunError: when it does not answer, or answers something else than vLLM does.
    """
    return asked_together(
        questions, lambda question: _ask(client, served_name, question), at_once=at_once, progress=progress
    )


def _ask(client: Client, name: str, question: Question) -> Answer:
    begin = time.perf_counter()
    rendered = rendered_ids(client, name, messages=question.messages, text=question.text)
    first_token = time.perf_counter()
    answer = client.complete(question.prompt_ids, model=name, max_tokens=question.max_tokens)
    end = time.perf_counter()
    return Answer(
        question=question,
        rendered_ids=rendered,
        tokens=answer.tokens,
        text=answer.text,
        finish_reason=answer.finish_reason,
        given_logprobs=_given_logprobs(client, name, question),
        first_token_seconds=first_token - begin,
        answer_seconds=end - first_token,
    )


def _given_logprobs(client: Client, name: str, question: Question) -> tuple[float, ...]:
    if not question.given_ids:
        return ()
    ids = (*question.prompt_ids, *question.given_ids)
    read = client.complete(ids, model=name, max_tokens=1, prompt_logprobs=0)
    found = [token.logprob for token in read.prompt[len(question.prompt_ids) :]]
    return tuple(float("nan") if value is None else value for value in found)
