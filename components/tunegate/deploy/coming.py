"""A target on its way up, beside what serves: prepared, started and asked in a thread, and stopped when not wanted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import Interrupted, RunError
from tunegate.deploy.source import Source
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.process import Server, start


@dataclass(frozen=True)
class Ready:
    """A server that may have traffic, and what clients call its models."""

    server: Server
    names: Mapping[str, str]


class Coming:
    """A target on its way up.

    Args:
        source: prepares it.
        target: what is brought up.
        where: the environment it is served in.
        log: the file that gets all that vLLM says.
        ready_seconds: how long it may load.

    Attributes:
        target: what is brought up.
        ready: the server, once it may have traffic.
        error: why it may not, once that is known.
    """

    def __init__(
        self, source: Source, target: str, where: ServeEnvironment, *, log: Path, ready_seconds: float
    ) -> None:
        self.target = target
        self.ready: Ready | None = None
        self.error: Exception | None = None
        self._source, self._where, self._log, self._ready_seconds = source, where, log, ready_seconds
        self._cancelled, self._lock = threading.Event(), threading.Lock()
        self._asked: Server | None = None
        self._thread = threading.Thread(target=self._run, name=f"bringing up {target[:12]}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it is up, or never will be."""
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Gives up: what it started ends, whether it is loading, asked or ready. :meth:`join` waits for that."""
        with self._lock:
            self._cancelled.set()
            started = self._asked or (self.ready.server if self.ready else None)
        if started is not None:
            started.stop()  # what is being asked fails at once

    def join(self, seconds: float) -> None:
        """Waits until nothing of it is left; what is fetched from a registry is not waited for any longer."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._brought_up()
        except Exception as error:  # whatever it is, what serves goes on, and the supervisor says it
            self.error = error

    def _brought_up(self) -> None:
        prepared = self._source.prepare(self.target, self._cancelled)
        server = start(
            prepared.engine,
            self._where,
            log=self._log,
            ready_seconds=self._ready_seconds,
            cancelled=self._cancelled,
        )
        try:
            with self._lock:
                self._asked = server
            self._go_on()
            try:
                prepared.check(server)
            except RunError:
                server.check_alive()  # one that died says why
                raise
            with self._lock:
                self._go_on()
                self.ready = Ready(server, prepared.names)
        except BaseException:
            server.stop()
            raise

    def _go_on(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted(
                "The server is no longer wanted.",
                seen="it was loaded and not asked yet",
                expected="a server that is waited for",
                remedy="nothing: what is wanted now is started",
            )
