"""Asking a vLLM server: which models it has, and what they answer, token by token.

What vLLM adds to OpenAI's interface makes an answer comparable with an evaluated one: token ids in and out, and the
log-probabilities of the prompt (vllm/entrypoints/openai/completion/protocol.py of 0.32).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tunegate.contracts.errors import InputError, RunError
from tunegate.serving.answers import Completion, ServedModel, read_chat, read_completion, read_models
from tunegate.serving.patience import BUSY, patiently

T = TypeVar("T")

_SHOWN = 400

#: How long a question of the server itself (is it well, what does it serve) may take.
_GLANCE_SECONDS = 30.0

# Straight to the server: a proxy of the environment would send prompts away, and cannot reach this machine anyhow.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Client:
    """A vLLM server's address.

    Attributes:
        url: ``http://host:port``.
        timeout_seconds: how long an answer may take.
        patience_seconds: how long a busy server (429, 503) is asked again, later each time; 0: not at all.
        api_key: what the server wants to see, sent to it alone; never shown.
    """

    url: str
    timeout_seconds: float = 300.0
    patience_seconds: float = 0.0
    api_key: str = field(default="", repr=False)

    def healthy(self, *, seconds: float = _GLANCE_SECONDS) -> bool:
        """Whether a server answers within ``seconds`` and says that its engine is well."""
        try:
            with _OPENER.open(f"{self.url}/health", timeout=seconds) as answer:
                return bool(answer.status == http.HTTPStatus.OK)
        except (OSError, http.client.HTTPException):
            return False

    def models(self) -> tuple[ServedModel, ...]:
        """What the server serves, the base first.

        Raises:
            RunError: when it does not answer.
        """
        return self._asked("/v1/models", None, read_models, seconds=_GLANCE_SECONDS)

    def version(self) -> str:
        """The version of vLLM.

        Raises:
            RunError: when it does not answer, or is no vLLM.
            InputError: when it refuses to say.
        """
        return self._asked("/version", None, lambda answer: str(answer["version"]), seconds=_GLANCE_SECONDS)

    def metrics(self) -> str:
        """What the server counts, in Prometheus' text format.

        Raises:
            RunError: when it does not answer.
            InputError: when it does not count.
        """
        return self._answered("/metrics", None, _GLANCE_SECONDS).decode("utf-8", errors="replace")

    def complete(
        self,
        prompt: Sequence[int] | str,
        *,
        model: str,
        max_tokens: int,
        logprobs: int = 2,
        prompt_logprobs: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        add_special_tokens: bool = False,
    ) -> Completion:
        """The greedy continuation of a prompt.

        Args:
            prompt: token ids, or text that a chat template has rendered.
            model: the served name of the model or adapter.
            max_tokens: where the answer is cut.
            logprobs: how many of the best candidates are reported at each place of the answer; 0: the token's own.
            prompt_logprobs: the same for the prompt; None: not even the tokens' own.
            stop: texts that end the answer.
            ignore_eos: whether the answer goes on after the end of the turn.
            add_special_tokens: whether the server puts its first token before a text; a chat template has done so.

        Raises:
            InputError: when the server refuses the request, for example a prompt that is too long or an unknown model.
            RunError: when it does not answer, or answers something else.
        """
        request: dict[str, Any] = {
            "model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": max_tokens,
            "temperature": 0.0, "logprobs": logprobs, "stop": list(stop), "ignore_eos": ignore_eos,
            "add_special_tokens": add_special_tokens, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        if prompt_logprobs is not None:
            request["prompt_logprobs"] = prompt_logprobs
        return self._asked("/v1/completions", request, read_completion)

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, model: str, max_tokens: int, logprobs: int = 2
    ) -> Completion:
        """The greedy answer to a conversation, rendered with the chat template of the served model.

        Args:
            messages: ``role`` and ``content`` of each turn.
            model: the served name of the model or adapter.
            max_tokens: where the answer is cut.
            logprobs: how many of the best candidates are reported at each place of the answer.

        Raises:
            InputError: when the server refuses the request.
            RunError: when it does not answer, or answers something else.
        """
        request = {
            "model": model, "messages": [dict(message) for message in messages], "max_tokens": max_tokens,
            "temperature": 0.0, "logprobs": True, "top_logprobs": logprobs, "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return self._asked("/v1/chat/completions", request, read_chat)

    def _asked(self, path: str, request: Any, read: Callable[[Any], T], *, seconds: float | None = None) -> T:
        """What the server answers to a request, read by ``read``."""
        body = self._answered(path, request, seconds or self.timeout_seconds)
        try:
            return read(json.loads(body))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise RunError(
                f"The server at {self.url} answers something else than vLLM does.",
                seen=f"{type(error).__name__}: {error}; {_shortened(body)}",
                expected=f"what vLLM 0.32 answers to {path}",
                remedy="check which server listens there, and its version",
            ) from error

    def _answered(self, path: str, request: Any, seconds: float) -> bytes:
        url = self.url + path
        data = None if request is None else json.dumps(request).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        if self.api_key:
            asked.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        try:
            return patiently(lambda: _body(asked, seconds), seconds=self.patience_seconds)
        except urllib.error.HTTPError as error:
            raise _refused(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise RunError(
                f"The server at {self.url} does not answer.",
                seen=_reason(error),
                expected=f"an answer to {path} within {seconds:.0f} s",
                remedy="look at the server's log: it may have ended, or be busy with more than it can do",
            ) from error


def _body(asked: urllib.request.Request, seconds: float) -> bytes:
    with _OPENER.open(asked, timeout=seconds) as answer:
        body: bytes = answer.read()
        return body


def _refused(url: str, error: urllib.error.HTTPError) -> InputError | RunError:
    body = error.read()
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        message = body.decode("utf-8", errors="replace")
    seen = f"HTTP {error.code}: {_shortened(message.encode())}"
    if error.code in BUSY:
        return RunError(
            "The server is too busy.", seen=seen, expected=f"an answer from {url} in time",
            remedy="try again later, ask for fewer rows at once, or be more patient",
        )  # fmt: skip
    if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return InputError(
            "The server refuses the request.", seen=seen, expected=f"a request that {url} can answer",
            remedy="change what the server names: the model's name, the prompt's length or the options",
        )  # fmt: skip
    return RunError(
        "The server failed at the request.", seen=seen, expected=f"an answer from {url}",
        remedy="look at the server's log",
    )  # fmt: skip


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def _shortened(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", errors="replace").split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
