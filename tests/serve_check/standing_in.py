"""Stands in for vLLM where only the comparison matters: its wire form, answered by transformers, with faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tunegate.serving.client import Client


@dataclass
class StandIn:
    """A server that is ready; has what is used of :class:`tunegate.serving.process.Server`.

    Attributes:
        weights: whose weights answer.
        tokenizer: whose tokenizer and chat template render.
        served_name: what it calls the model.
        cut: how many tokens an answer lacks.
        ends: whether it ends an answer at its end-of-turn token.
        broken: whether it fails at every request.
    """

    weights: Path
    tokenizer: Path
    served_name: str
    cut: int = 0
    ends: bool = True
    broken: bool = False
    url: str = ""
    started_seconds: float = 1.5
    stopped: bool = False

    @property
    def client(self) -> Client:
        return Client(self.url)

    def check_alive(self) -> None:
        """It always is."""

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.stop()

    @contextmanager
    def listening(self) -> Iterator[StandIn]:
        """It answers while this lasts."""
        from tunegate.models.load import load_causal_lm, load_tokenizer

        answering = _Answering(self, load_causal_lm(self.weights).eval(), load_tokenizer(self.tokenizer))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(answering(self.path, request)).encode()
                self.send_response(500 if answering.server.broken else 200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *of_a_request: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            self.url = f"http://127.0.0.1:{http.server_port}"
            yield self
            http.shutdown()


@dataclass
class _Answering:
    server: StandIn
    model: Any
    tokenizer: Any

    def __call__(self, path: str, request: Any) -> Any:
        if path == "/v1/chat/completions":
            prompt = self.tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True)["input_ids"]
            return self._chat(prompt, *self._continued(prompt, request["max_tokens"]))
        prompt = request["prompt"]
        if isinstance(prompt, str):
            prompt = self.tokenizer(prompt)["input_ids"]
        return self._completion(prompt, request, *self._continued(prompt, request["max_tokens"]))

    def _log_probs(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def _continued(self, prompt: list[int], max_tokens: int) -> tuple[list[int], list[dict[int, float]]]:
        """The greedy answer, and the best candidates at each place, the best first."""
        ids, tops = list(prompt), []
        for _ in range(max_tokens - self.server.cut if max_tokens > 1 else 1):
            best = self._log_probs(ids)[-1].topk(5)
            tops.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            ids.append(next(iter(tops[-1])))
            if self.server.ends and ids[-1] == self.tokenizer.eos_token_id:
                break
        return ids[len(prompt) :], tops

    def _reason(self, answer: list[int]) -> str:
        return "stop" if answer[-1] == self.tokenizer.eos_token_id else "length"

    def _chat(self, prompt: list[int], answer: list[int], tops: list[dict[int, float]]) -> Any:
        content = [{"logprob": max(top.values()), "top_logprobs": []} for top in tops]
        choice = {
            "token_ids": answer, "logprobs": {"content": content}, "finish_reason": self._reason(answer),
            "message": {"content": self.tokenizer.decode(answer, skip_special_tokens=True)},
        }  # fmt: skip
        return {"choices": [choice], "prompt_token_ids": prompt}

    def _completion(self, prompt: list[int], request: Any, answer: list[int], tops: list[dict[int, float]]) -> Any:
        at_prompt = None
        if "prompt_logprobs" in request:
            values = self._log_probs(prompt)
            rest = [{str(token): {"logprob": float(values[n, token])}} for n, token in enumerate(prompt[1:])]
            at_prompt = [None, *rest]
        choice = {
            "text": self.tokenizer.decode(answer, skip_special_tokens=True), "token_ids": answer,
            "prompt_token_ids": prompt, "prompt_logprobs": at_prompt, "finish_reason": self._reason(answer),
            "logprobs": {
                "token_logprobs": [max(top.values()) for top in tops],
                "top_logprobs": [{f"token_id:{token}": value for token, value in top.items()} for top in tops],
            },
        }  # fmt: skip
        return {"choices": [choice]}
