"""The stable address, by the real Envoy: a switch loses nothing, a stream is not cut, nothing outlives its owner."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tunegate.contracts.errors import RunError, SettingsError
from tunegate.serving.address import Address
from tunegate.serving.envoy_documents import Backend

STREAMED = 5


class Answering(BaseHTTPRequestHandler):
    """Answers with the server's name; ``/stream`` word by word, each after the server's leave."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        name: bytes = server.said
        self.send_response(200)
        if self.path != "/stream":
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(STREAMED):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(name), name))
            self.wfile.flush()
            server.leave.acquire(timeout=60)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    def __init__(self, said: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.said, self.leave = said, threading.Semaphore(0)


@contextlib.contextmanager
def serving(name: str) -> Iterator[tuple[Backend, Server]]:
    with Server(name.encode()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Backend(name, f"http://127.0.0.1:{server.server_port}"), server
        server.shutdown()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Address]:
    with Address(tmp_path / "address") as found:
        yield found


def asked(url: str) -> bytes:
    with urllib.request.urlopen(url, data=b"{}", timeout=60) as answer:
        body: bytes = answer.read()
    return body


def test_before_anything_serves_clients_are_told_when_to_ask_again(address: Address) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(address.url)
    assert refused.value.code == 503
    assert refused.value.headers["Retry-After"] == "5"


def test_a_switch_under_load_loses_no_request_and_none_that_follows_reaches_the_old_server(address: Address) -> None:
    failed: list[Exception] = []
    counted: list[bytes] = []
    done = threading.Event()

    def load() -> None:
        connection = http.client.HTTPConnection(urlsplit(address.url).netloc, timeout=60)
        while not done.is_set():
            try:
                connection.request("POST", "/", body=b"{}")
                answer = connection.getresponse()
                counted.append(answer.read())
                assert answer.status == 200
            except Exception as error:
                failed.append(error)
                return

    with contextlib.ExitStack() as servers:
        pairs = [servers.enter_context(serving(f"server-{n}")) for n in range(6)]
        address.switch(pairs[0][0])
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for (before, old), (after, _) in itertools.pairwise(pairs):
            address.switch(after)
            assert asked(address.url) == after.name.encode()
            assert address.drain(before.name, seconds=60)
            address.forget(before.name)
            old.shutdown()
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert set(counted) == {f"server-{n}".encode() for n in range(6)}


def test_a_stream_ends_where_it_began_and_counts_as_under_way_until_then(address: Address) -> None:
    with serving("old") as (old, server), serving("new") as (new, _):
        address.switch(old)
        connection = http.client.HTTPConnection(urlsplit(address.url).netloc, timeout=60)
        connection.request("POST", "/stream", body=b"{}")
        answer = connection.getresponse()
        assert answer.read(3) == b"old"  # the first word is not held back for the others
        address.switch(new)
        assert asked(address.url) == b"new"
        assert address.in_flight("old") == 1
        assert not address.drain("old", seconds=0.2)
        server.leave.release(STREAMED)
        assert answer.read() == b"old" * (STREAMED - 1)
        assert address.drain("old", seconds=60)


def test_a_server_that_is_gone_is_answered_with_503_and_not_waited_for(address: Address) -> None:
    with serving("gone") as (gone, _):
        address.switch(gone)
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(address.url)
    assert refused.value.code == 503
    address.switch(None)
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(address.url)
    assert refused.value.headers["Retry-After"] == "5"


def test_a_connection_that_a_server_is_about_to_close_is_not_used_again(address: Address) -> None:
    """uvicorn closes an idle connection after five seconds: a request that is sent just then is lost."""
    with serving("once") as (once, _):
        address.switch(once)
        assert asked(address.url) == b"once"
        time.sleep(2.5)
        assert '"value":0' in address._ask("/stats?format=json&filter=cluster.once.upstream_cx_active$")


@pytest.mark.parametrize(
    "backend",
    [Backend("Upper", "http://127.0.0.1:1"), Backend("a/b", "http://127.0.0.1:1"), Backend("a", "http://127.0.0.1"),
     Backend("a", "https://127.0.0.1:1"), Backend("a", "http://127.0.0.1:1/path"), Backend("a", "http://[::1:9")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_and_changes_nothing(address: Address, backend: Backend) -> None:
    with serving("well") as (well, _):
        address.switch(well)
        with pytest.raises(SettingsError):
            address.switch(backend)
        assert asked(address.url) == b"well"


def test_a_name_never_stands_for_two_servers(address: Address) -> None:
    with serving("one") as (one, _), serving("two") as (two, _):
        address.switch(one)
        with pytest.raises(SettingsError, match="name"):
            address.switch(Backend("one", two.url))
        assert asked(address.url) == b"one"


def test_a_port_that_is_taken_is_said_before_anything_starts(address: Address, tmp_path: Path) -> None:
    port = urlsplit(address.url).port
    assert port
    with pytest.raises(SettingsError, match="Envoy cannot listen"):
        Address(tmp_path / "other", port=port)


def test_a_folder_whose_socket_linux_would_refuse_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="too long a path"):
        Address(tmp_path / ("deep" * 40))
    assert list(tmp_path.iterdir()) == []


def test_an_envoy_that_ended_is_an_error_with_what_its_log_tells(address: Address) -> None:
    os.killpg(address.group, signal.SIGKILL)
    with serving("late") as (late, _), pytest.raises(RunError, match="Envoy ended"):
        address.switch(late)


def test_envoy_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tunegate.serving.address import Address;"
        f"a = Address(Path({str(tmp_path / 'a')!r})); print(a.group, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        owner.kill()
    ends = time.monotonic() + 60
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < ends, "Envoy still runs"
        time.sleep(0.1)


def test_a_name_of_this_machine_is_listened_on_and_an_unknown_one_is_said(tmp_path: Path) -> None:
    with Address(tmp_path / "address", host="localhost") as found, serving("only") as (only, _):
        found.switch(only)
        assert asked(found.url) == b"only"
    with pytest.raises(SettingsError, match="cannot listen on no such host"):
        Address(tmp_path / "other", host="no such host")


def test_two_never_share_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the port free before either listened there."""
    monkeypatch.setattr("tunegate.serving.address._TAKEN_UP_SECONDS", 3.0)
    with Address(tmp_path / "one") as one:
        port = urlsplit(one.url).port
        assert port is not None
        monkeypatch.setattr("tunegate.serving.address.listening_port", lambda *_: port)
        with pytest.raises(RunError):
            Address(tmp_path / "two", port=port)


def test_when_a_server_is_gone_clients_are_told_when_to_ask_again(address: Address) -> None:
    with serving("gone") as (gone, server):
        address.switch(gone)
        server.shutdown()
        server.server_close()
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(address.url)
    assert (refused.value.code, refused.value.headers["Retry-After"]) == (503, "5")
