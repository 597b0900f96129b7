"""A model on a server is asked as one that is loaded here: with the same scores and answers, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError, RunError, SettingsError
from tunegate.contracts.manifest import input_digest
from tunegate.contracts.settings import parse_settings
from tunegate.evaluate.launcher import api_key
from tunegate.evaluate.served_model import find_served, likelihood, served_model
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.serving.answers import Token
from tunegate.serving.client import Client

KEY = "sk-very-secret"


@dataclass
class Stand:
    """Stands in for vLLM: its interface, as far as it is used, over the tiny model.

    Attributes:
        names: what it says it serves.
        adapter: whether it lists an adapter as well.
        busy: how many requests it sends away first.
        most_scored: how many likelihoods it was asked for at once, at most.
        keys: what each request showed.
    """

    folder: Path
    names: list[str]
    adapter: bool = False
    busy: int = 0
    most_scored: int = 0
    keys: set[str] = field(default_factory=set)
    url: str = ""

    def __post_init__(self) -> None:
        self._model, self._tokenizer = load_causal_lm(self.folder), load_tokenizer(self.folder)
        self._lock, self._scored = threading.Lock(), 0

    def answer(self, path: str, request: Any) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path == "/v1/models":
            cards = [{"id": n, "root": "", "parent": None, "max_model_len": 512} for n in self.names]
            adapters = [{"id": "a", "root": "", "parent": self.names[0], "max_model_len": None}] * self.adapter
            return {"data": cards + adapters}
        self._scored += "prompt_logprobs" in request
        self.most_scored = max(self.most_scored, self._scored)
        with self._lock:
            answer = {"choices": [self._complete(request)]}
            self._scored -= "prompt_logprobs" in request
            return answer

    def _complete(self, request: Any) -> dict[str, Any]:
        import torch

        ids = torch.tensor([request["prompt"]])
        with torch.no_grad():
            logprobs = self._model(ids).logits.log_softmax(-1)[0]
            said = self._model.generate(ids, max_new_tokens=request["max_tokens"], do_sample=False)[0, ids.shape[1] :]
        told: list[Any] = [None]
        for place, token in enumerate(request["prompt"][1:]):
            best = {int(logprobs[place].argmax()), token}
            told.append({str(t): {"logprob": float(logprobs[place, t])} for t in best})
        return {
            "text": self._tokenizer.decode(said, skip_special_tokens=True),
            "token_ids": said.tolist(),
            "prompt_token_ids": request["prompt"],
            "prompt_logprobs": told if "prompt_logprobs" in request else None,
            "logprobs": {"token_logprobs": [0.0] * len(said), "top_logprobs": [{}] * len(said)},
            "finish_reason": "stop",
        }


@pytest.fixture
def stand(tiny_base: Path) -> Iterator[Stand]:
    it = Stand(tiny_base, [input_digest(tiny_base)])

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            request = json.loads(self.rfile.read(length)) if length else None
            it.keys.add(self.headers.get("Authorization", ""))
            if it.busy:
                it.busy -= 1
                self.send_response(503 if it.busy % 2 else 429)
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(it.answer(self.path, request)).encode())

        do_GET = do_POST  # noqa: N815 - the name that the library calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    it.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield it
    server.shutdown()
    server.server_close()


def _settings(url: str, **more: Any) -> EvaluateSettings:
    given = {"limit": 4, "batch_size": 4, "max_new_tokens": 6, "noise_rows": 0, **more}
    return EvaluateSettings(**given, **({"backend": "openai", "base_url": url} if url else {}))


def _rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "rows.parquet").to_pylist()


def test_a_served_model_gets_the_scores_of_one_that_is_loaded_here(stand, tiny_base, tiny_dataset, tmp_path) -> None:
    for name, url in (("here", ""), ("served", stand.url)):
        run(_settings(url), model=tiny_base, dataset=tiny_dataset, output=tmp_path / name)
    here, served = _rows(tmp_path / "here"), _rows(tmp_path / "served")
    assert [line.pop("score") for line in served] == pytest.approx([line.pop("score") for line in here], rel=1e-4)
    assert served == here, "the same rows, prompts, answers and slices"
    results = json.loads((tmp_path / "served/results.json").read_text())
    assert results["engine"]["vllm"] == "0.32.0" and stand.url not in json.dumps(results)


def test_a_server_with_adapters_is_asked_for_one_likelihood_at_a_time(stand, tiny_base, tiny_dataset, tmp_path) -> None:
    """vLLM 0.32 on a CPU dies of two, and with it everything that it serves."""
    stand.adapter = True
    settings = _settings(stand.url, tasks=("completion_perplexity",), limit=6)
    run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert stand.most_scored == 1


def test_a_server_that_serves_another_model_is_refused(stand, tiny_base, tiny_dataset, tmp_path) -> None:
    stand.names = ["latest"]
    with pytest.raises(ModelError, match="does not serve this model") as caught:
        run(_settings(stand.url), model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.seen == "latest" and caught.value.exit_code == 2


def test_where_a_server_listens_and_its_key_are_no_part_of_what_is_known(
    stand, tiny_base, tiny_dataset, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    settings = _settings(stand.url + "/v1/", api_key_variable="SERVER_KEY", tasks=("completion_perplexity",))
    first = run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "a", api_key=api_key(settings))
    assert stand.keys == {f"Bearer {KEY}"}
    plain = _settings(stand.url, tasks=("completion_perplexity",), request_timeout_seconds=9.0)
    assert (
        run(plain, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "b").content_digest == first.content_digest
    )
    assert KEY not in "".join(capfd.readouterr()) and KEY not in repr(Client(stand.url, api_key=KEY))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_key_that_is_not_there_is_told_by_the_name_of_its_variable(monkeypatch) -> None:
    monkeypatch.delenv("SERVER_KEY", raising=False)
    with pytest.raises(SettingsError, match="SERVER_KEY"):
        api_key(_settings("http://localhost:1", api_key_variable="SERVER_KEY"))
    assert api_key(_settings("")) == ""


def test_a_busy_server_is_asked_again_and_an_impatient_one_is_an_error(stand, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("tunegate.serving.patience.time.sleep", waited.append)
    stand.busy = 3
    assert Client(stand.url, patience_seconds=60.0).version() == "0.32.0"
    assert len(waited) == 3 and waited == sorted(waited)
    stand.busy = 3
    with pytest.raises(RunError, match="busy"):
        Client(stand.url).version()
    assert len(waited) == 3


def test_a_server_without_the_likelihood_of_a_prompt_is_an_error_and_no_score() -> None:
    with pytest.raises(RunError, match="how likely"):
        likelihood([Token(1), Token(2, -1.0), Token(3)], 1, 2)
    with pytest.raises(RunError, match="how likely"):
        likelihood([Token(1), Token(2, -1.0)], 1, 2)


def test_a_task_that_samples_is_refused(stand, tiny_base) -> None:
    from lm_eval.api.instance import Instance

    served = find_served(Client(stand.url), input_digest(tiny_base))
    model = served_model(served, load_tokenizer(tiny_base), rows_at_once=2, rendered=True)
    with pytest.raises(SettingsError, match="samples"):
        model.generate_until([Instance("generate_until", {}, ("x", {"do_sample": True, "until": []}), 0)])


@pytest.mark.parametrize("given", [{"backend": "openai"}, {"base_url": "http://localhost:8000"}])
def test_a_backend_and_an_address_belong_together(given) -> None:
    with pytest.raises(SettingsError, match="do not go together"):
        parse_settings(EvaluateSettings, given, where="evaluate")
