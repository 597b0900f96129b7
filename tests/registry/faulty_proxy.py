"""A proxy between the client and the test server that breaks what passes through it, in ways that networks do."""

from __future__ import annotations

import base64
import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c

FAULTS = ("503", "429", "reset", "lost answer", "stall", "cut answer", "flipped request", "flipped answer")
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        choose: asked once for each request with its method and path; a name of :data:`FAULTS`, or nothing.
        stall_seconds: how long a stall is silent before it hangs up.
        sent_bytes: how many bytes of request bodies came through.
        met: which faults happened, in order.
    """

    choose: Callable[[str, str], str] = lambda method, path: ""
    stall_seconds: float = 1.5
    sent_bytes: int = 0
    met: list[str] = field(default_factory=list)


@contextlib.contextmanager
def faulty_proxy(server: str, faults: Faults) -> Iterator[str]:
    """Runs the proxy in front of ``server`` and gives its address."""
    host, port = server.removeprefix("http://").split(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            faults.sent_bytes += len(body)
            if len(body) < length:  # the client died: a server would not take half a request either
                self.close_connection = True
                return
            fault = faults.choose(self.command, self.path)
            if fault:
                faults.met.append(fault)
            if fault in ("503", "429"):
                self._answer(int(fault), {}, b"")
            elif fault == "reset":
                self._hang_up()
            elif fault == "stall":
                time.sleep(faults.stall_seconds)
                self._hang_up()
            else:
                self._forward(body, fault)

        def _forward(self, body: bytes, fault: str) -> None:
            if fault == "flipped request":
                body = _flipped(body)
            if _states_other_checksum(body):
                self._answer(400, {}, b"the checksum is not that of the bytes")  # as Google's server, not as the test's
                return
            upstream = http.client.HTTPConnection(host, int(port), timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if fault == "lost answer":
                self._hang_up()
                return
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            if "Location" in kept:
                kept["Location"] = kept["Location"].replace(server, f"http://127.0.0.1:{self.server.server_port}")
            self._answer(answer.status, kept, _flipped(data) if fault == "flipped answer" else data, fault)

        def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: str = "") -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "cut answer":
                self.wfile.write(data[: len(data) // 2])
                self._hang_up()
            elif self.command != "HEAD":
                self.wfile.write(data)

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass  # noqa: N815 - names of the standard library

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    proxy.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()


def at_random(seed: int, share: float, faults: tuple[str, ...] = FAULTS) -> Callable[[str, str], str]:
    """A fault in about this share of the requests."""
    rng = random.Random(seed)
    return lambda method, path: rng.choice(faults) if rng.random() < share else ""


def _flipped(data: bytes) -> bytes:
    """One bit of the middle is another: of the payload, where there is one."""
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else data


def _states_other_checksum(body: bytes) -> bool:
    """Whether a one-request upload states a CRC32C that its bytes do not have."""
    stated = re.search(rb'"crc32c": ?"([^"]+)"', body[:4000])
    if not body.startswith(b"--") or stated is None:
        return False
    mark = body[: body.index(b"\r\n")]
    payload = body.split(b"\r\n\r\n", 2)[2].removesuffix(mark + b"--").removesuffix(b"\r\n")
    return base64.b64encode(google_crc32c.Checksum(payload).digest()) != stated[1]
