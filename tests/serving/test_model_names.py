"""What clients call a model becomes what the server calls it, and nothing else of a request changes."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.serving.address import Address
from tunegate.serving.envoy_documents import Backend

DIGESTS = {"support": "a" * 64, "legal": "b" * 64}


class Echo(BaseHTTPRequestHandler):
    """Answers with the body that reached it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"its own")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Backend("echo", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.fixture(scope="module")
def address(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with Address(tmp_path_factory.mktemp("names") / "address") as found:
        found.switch(backend, names=DIGESTS)
        yield found


def reached(address: Address, body: str) -> str:
    """What of a request reaches the server."""
    asked = urllib.request.Request(f"{address.url}/v1/chat/completions", body.encode(), {"Content-Type": "x/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return str(answer.read().decode())


def renamed(name: str) -> str:
    return name.replace('"support"', f'"{DIGESTS["support"]}"', 1)


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"support","messages":[]}',
        '{ "stream" : true,\n  "model"  :\t"support" }',
        '{"max_tokens": 1e0, "temperature": 0.10, "b": {"z": 1, "a": 2}, "model": "support"}',
    ],
)
def test_the_name_is_replaced_and_every_other_byte_stays(address: Address, body: str) -> None:
    assert reached(address, body) == renamed(body)


@pytest.mark.parametrize(
    "before",
    [
        r'"messages":[{"content":"say \"model\":\"support\" twice"}]',
        r'"tools":[{"model":"support"}],"x":{"model":"support"}',
        r'"content":"ends with a backslash \\"',
        r'"content":"braces } ] { [ and a quote \" in a text"',
        '"model_name":"support"',
        '"text":"Grüße \U0001f600"',
    ],
)
def test_a_text_or_an_inner_object_that_looks_like_it_stays_as_it_is(address: Address, before: str) -> None:
    digest = DIGESTS["support"]
    assert reached(address, f'{{{before},"model":"support"}}') == f'{{{before},"model":"{digest}"}}'
    assert reached(address, f'{{"model":"support",{before}}}') == f'{{"model":"{digest}",{before}}}'


@pytest.mark.parametrize(
    "body",
    ['{"model":"other"}', '{"model":"Support"}', f'{{"model":"{"a" * 64}"}}', '{"model":7}', "{}", "", "[]", '{"model'],
)  # fmt: skip
def test_what_has_no_such_name_is_passed_on_as_it_is(address: Address, body: str) -> None:
    assert reached(address, body) == body


def test_of_two_models_the_last_counts_as_it_does_for_the_server(address: Address) -> None:
    body = reached(address, '{"model":"support","model":"legal"}')
    assert json.loads(body)["model"] == DIGESTS["legal"]


def test_a_long_conversation_is_passed_on_whole(address: Address) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": 'a "b" {' * 400_000}], "model": "support"})
    assert json.loads(reached(address, body)) == json.loads(body) | {"model": DIGESTS["support"]}


def test_the_models_are_listed_by_the_names_that_clients_use(address: Address) -> None:
    with urllib.request.urlopen(f"{address.url}/v1/models", timeout=60) as answer:
        cards: Any = json.loads(answer.read())["data"]
    assert {card["id"]: card["root"] for card in cards} == DIGESTS


def test_names_are_switched_with_the_server_and_without_any_it_answers_for_itself(
    backend: Backend, tmp_path: Path
) -> None:
    with Address(tmp_path / "address") as found:
        found.switch(backend, names=DIGESTS)
        found.switch(backend, names={"support": "c" * 64})
        assert json.loads(reached(found, '{"model":"support"}'))["model"] == "c" * 64
        assert json.loads(reached(found, '{"model":"legal"}'))["model"] == "legal"
        found.switch(backend)
        assert json.loads(reached(found, '{"model":"support"}'))["model"] == "support"
        with urllib.request.urlopen(f"{found.url}/v1/models", timeout=60) as answer:
            assert answer.read() == b"its own"


def test_a_request_that_is_still_sent_when_the_server_is_switched_is_answered(backend: Backend, tmp_path: Path) -> None:
    """It has its route from its first line on, and no server counts it before it is whole."""
    body = b'{"model":"support","messages":[]}'
    with Address(tmp_path / "address") as found:
        found.switch(backend, names=DIGESTS)
        connection = http.client.HTTPConnection(urlsplit(found.url).netloc, timeout=60)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:9])
        time.sleep(0.2)
        found.switch(Backend("new", backend.url), names=DIGESTS)
        assert found.in_flight("echo") == 0
        assert not found.drain("echo", seconds=0.5)
        connection.send(body[9:])
        assert json.loads(connection.getresponse().read())["model"] == DIGESTS["support"]
        assert found.drain("echo", seconds=60)
        found.forget("echo")


@pytest.mark.parametrize("name", ['a"]=1', "a\n", "", "a b"])
def test_a_name_that_would_be_code_is_refused(backend: Backend, tmp_path: Path, name: str) -> None:
    with Address(tmp_path / "address") as found, pytest.raises(SettingsError, match="model name"):
        found.switch(backend, names={name: "b" * 64})
