"""The client: token ids and log-probabilities arrive as vLLM gave them, and every failure is an error that tells."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunegate.contracts.errors import InputError, RunError
from tunegate.serving.answers import Candidate, Completion, ServedModel, Token
from tunegate.serving.client import Client

#: What vLLM 0.32 answers, less the fields that are not read.
MODELS: dict[str, Any] = {
    "object": "list",
    "data": [
        {"id": "it", "object": "model", "root": "/models/it", "parent": None, "max_model_len": 512},
        {"id": "adapter-1", "object": "model", "root": "/adapters/1", "parent": "it", "max_model_len": None},
    ],
}
COMPLETION: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "it",
    "choices": [
        {
            "index": 0,
            "text": " Os",
            "logprobs": {
                "text_offset": [0, 3],
                "token_logprobs": [-0.5, -0.25],
                "tokens": ["token_id:31", "token_id:2"],
                "top_logprobs": [
                    {"token_id:31": -0.5, "token_id:30": -0.5},
                    {"token_id:2": -0.25, "token_id:9": -2.0},
                ],
            },
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": [31, 2],
            "prompt_logprobs": [None, {"6": {"logprob": -3.5, "rank": 9, "decoded_token": "f"}}],
            "prompt_token_ids": [5, 6],
        }
    ],
}
CHAT: dict[str, Any] = {
    "object": "chat.completion",
    "model": "it",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " Os"},
            "logprobs": {
                "content": [
                    {
                        "token": "token_id:31",
                        "logprob": -0.5,
                        "bytes": None,
                        "top_logprobs": [
                            {"token": "token_id:31", "logprob": -0.5, "bytes": None},
                            {"token": "token_id:30", "logprob": -1.5, "bytes": None},
                        ],
                    }
                ]
            },
            "finish_reason": "length",
            "token_ids": [31],
        }
    ],
    "prompt_token_ids": [1, 5, 6],
}


@dataclass
class Scripted:
    """A server that gives one answer to everything, and remembers what it was asked."""

    url: str
    status: int = 200
    body: bytes = b"{}"
    asked: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def client(self) -> Client:
        return Client(self.url, timeout_seconds=60.0)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            answer.asked.append((self.path, json.loads(self.rfile.read(length) or b"null")))
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        answer = Scripted(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield answer
        server.shutdown()


def test_a_completion_carries_token_ids_and_the_gap_between_the_best_two(scripted: Scripted) -> None:
    scripted.body = json.dumps(COMPLETION).encode()
    answer = scripted.client.complete([5, 6], model="it", max_tokens=2, prompt_logprobs=0, stop=["\n"])
    assert answer == Completion(
        text=" Os",
        tokens=(
            Token(31, -0.5, (Candidate(30, -0.5), Candidate(31, -0.5))),
            Token(2, -0.25, (Candidate(2, -0.25), Candidate(9, -2.0))),
        ),
        prompt=(Token(5), Token(6, -3.5, (Candidate(6, -3.5),))),
        finish_reason="stop",
        model="it",
    )
    assert [token.gap for token in answer.tokens] == [0.0, 1.75]
    assert answer.prompt[1].gap is None
    ((path, asked),) = scripted.asked
    assert path == "/v1/completions"
    assert asked["temperature"] == 0.0
    assert (asked["model"], asked["prompt"], asked["stop"]) == ("it", [5, 6], ["\n"])


def test_a_chat_carries_the_prompt_that_the_server_rendered(scripted: Scripted) -> None:
    scripted.body = json.dumps(CHAT).encode()
    answer = scripted.client.chat([{"role": "user", "content": "?"}], model="it", max_tokens=2)
    assert answer.prompt == (Token(1), Token(5), Token(6))
    assert answer.tokens == (Token(31, -0.5, (Candidate(31, -0.5), Candidate(30, -1.5))),)
    assert (answer.text, answer.finish_reason) == (" Os", "length")


def test_models_are_listed_with_the_folder_they_come_from(scripted: Scripted) -> None:
    scripted.body = json.dumps(MODELS).encode()
    assert scripted.client.models() == (
        ServedModel("it", "/models/it", parent="", max_model_len=512),
        ServedModel("adapter-1", "/adapters/1", parent="it", max_model_len=0),
    )


def test_a_refusal_tells_the_servers_reason_in_short(scripted: Scripted) -> None:
    scripted.status = 400
    scripted.body = json.dumps({"error": {"message": "too long: " + "x" * 10_000}}).encode()
    with pytest.raises(InputError, match="refuses the request") as raised:
        scripted.client.complete("?", model="it", max_tokens=1)
    assert raised.value.seen.startswith("HTTP 400: too long: xxx")
    assert len(raised.value.seen) < 500


def test_a_failure_of_the_server_is_not_taken_for_a_wrong_request(scripted: Scripted) -> None:
    scripted.status, scripted.body = 500, b"EngineDeadError"
    with pytest.raises(RunError, match="failed at the request") as raised:
        scripted.client.complete("?", model="it", max_tokens=1)
    assert raised.value.seen == "HTTP 500: EngineDeadError"
    assert not scripted.client.healthy()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"text": "no token ids"}]}'])
def test_another_servers_answer_is_never_taken_for_one_of_vllm(body: bytes, scripted: Scripted) -> None:
    scripted.body = body
    with pytest.raises(RunError, match="something else than vLLM"):
        scripted.client.complete("?", model="it", max_tokens=1)


def test_a_server_that_is_down_or_silent_is_an_error_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for reason in ("refused", "timed out"):
            with pytest.raises(RunError, match="does not answer") as raised:
                Client(url, timeout_seconds=0.2).complete("?", model="it", max_tokens=1)
            assert reason in raised.value.seen
            silent.listen()
    assert not Client(url).healthy()


def test_no_proxy_of_the_environment_sees_a_prompt(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    scripted.body = json.dumps(MODELS).encode()
    assert scripted.client.models()
