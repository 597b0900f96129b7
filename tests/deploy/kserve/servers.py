"""Stands in for vLLM in a pod: lists a model, answers, counts, and fails, dawdles or lies as it is told."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """How the servers of one model behave; changed while they run.

    Attributes:
        serves: the name they list first; empty: the one they were told to expect.
        token: what they answer.
        fails_every: each so-manieth completion fails; 0: none.
        seconds: how long a completion takes.
        ready: whether they ever are.
        user_failures: failures of others' requests that they count with each look at ``/metrics``.
        silent: they are listed, and do not answer.
        nameless: they do not know the alias.
    """

    serves: str = ""
    token: int = 1
    fails_every: int = 0
    seconds: float = 0.0
    ready: bool = True
    user_failures: int = 0
    silent: bool = False
    nameless: bool = False


@dataclass
class Pod:
    """A running server.

    Attributes:
        model: the digest it was told to expect.
        behaviour: shared by all servers of that model.
        alias: the further name that requests may use.
        asked: how many completions it was asked for.
    """

    model: str
    behaviour: Behaviour
    alias: str = "champion"
    asked: int = 0
    counted: dict[str, int] = field(default_factory=lambda: {"2xx": 0, "5xx": 0})

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def ready(self) -> bool:
        return self.behaviour.ready

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(pod: Pod) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            told = pod.behaviour
            if told.silent:
                return self._say(503, b"")
            if self.path == "/metrics":
                pod.counted["5xx"] += told.user_failures
                return self._say(200, _metrics(pod.counted).encode())
            name = told.serves or pod.model
            names = [name] if told.nameless else [name, pod.alias]
            cards = [{"id": one, "root": "/mnt/models", "parent": None, "max_model_len": 8} for one in names]
            return self._say(200, json.dumps({"data": cards}).encode())

        def do_POST(self) -> None:
            told = pod.behaviour
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pod.asked += 1
            time.sleep(told.seconds)
            name = told.serves or pod.model
            fails = told.silent or (told.fails_every and pod.asked % told.fails_every == 0)
            if fails or request["model"] not in (name, pod.alias):
                pod.counted["5xx"] += 1
                return self._say(500, b"{}")
            pod.counted["2xx"] += 1
            return self._say(200, json.dumps({"model": name, "choices": [_answer(told.token)]}).encode())

        def _say(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _answer(token: int) -> dict[str, Any]:
    return {
        "text": "a",
        "token_ids": [token],
        "prompt_token_ids": [0],
        "prompt_logprobs": None,
        "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{f"token_id:{token}": -1.0}]},
        "finish_reason": "length",
    }


def _metrics(counted: dict[str, int]) -> str:
    """As prometheus_fastapi_instrumentator, which vLLM uses, writes them; read from a vLLM 0.32."""
    lines = ["# TYPE http_requests_total counter"]
    lines += ['http_requests_total{handler="/v1/models",method="GET",status="2xx"} 7.0']
    lines += ['http_requests_total{handler="/v1/responses/{response_id}/cancel",method="POST",status="2xx"} 1.0']
    for status, value in counted.items():
        lines.append(f'http_requests_total{{handler="/v1/completions",method="POST",status="{status}"}} {value}.0')
    return "\n".join([*lines, ""])
