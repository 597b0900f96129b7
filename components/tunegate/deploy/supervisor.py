"""Serves on this machine what a source says: that is held against what answers, again and again.

What the source moves to is fetched, verified, started beside what serves, asked, and only then given the stable
address; the old server ends when its last request has. What is refused changes nothing: the old one serves on. A server
that dies or hangs is started again on the same bytes. Whatever takes long is done beside the rounds: a look at what
serves never waits for it. Nothing is remembered between two runs but the files: whatever is killed, the next start
begins from what the source says.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import GateRefused, InputError, RunError, TunegateError
from tunegate.contracts.files import pretty_json, write_atomically
from tunegate.contracts.progress import say
from tunegate.deploy.coming import Coming
from tunegate.deploy.settings import LocalSettings
from tunegate.deploy.source import Source, Wanted
from tunegate.deploy.state import SCHEMA_VERSION, STATE_NAME, alone
from tunegate.deploy.versions import TASK
from tunegate.serving.address import Address
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.envoy_documents import Backend
from tunegate.serving.process import Server

_LONGEST_PAUSE_SECONDS = 60.0

#: How often the last requests are looked for while the supervisor ends, and how long it waits for what it started.
_ENDING_POLL_SECONDS = 0.1
_LAST_SECONDS = 30.0

#: How long one look at a server's health may take.
_WELL_SECONDS = 5.0


@dataclass(frozen=True)
class Stop:
    """How a supervisor is told to end: ``asked``, and ``hurry`` when requests are not to be waited for any longer."""

    asked: threading.Event = field(default_factory=threading.Event)
    hurry: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Serving:
    """A server that has, or had, the stable address.

    Attributes:
        target: what it serves.
        backend: how the address knows it.
        server: its process.
        names: what clients call its models.
        since: when it got the address.
    """

    target: str
    backend: Backend
    server: Server
    names: Mapping[str, str]
    since: str


@dataclass
class Failed:
    """A target that did not start.

    Attributes:
        starts: how many failed one behind the other.
        next_try: before this (monotonic) it is not started again.
        why: the last error.
    """

    starts: int
    next_try: float
    why: str


class Supervisor:
    """What is served, and what follows from each look at it.

    Args:
        source: says what is served; that may change at any time.
        settings: how long things may take.
        where: the environment it is served in.
        folder: where files, logs and state lie.
        address: where clients ask.
    """

    def __init__(
        self, source: Source, settings: LocalSettings, where: ServeEnvironment, *, folder: Path, address: Address
    ) -> None:
        self._source, self._settings, self._where = source, settings, where
        self._folder, self._address = folder, address
        self._serving: Serving | None = None
        self._retiring: list[tuple[Serving, float]] = []
        self._coming: list[Coming] = []
        self._ending: list[threading.Thread] = []
        self._last = ""
        self._refused: dict[str, str] = {}
        self._failed: dict[str, Failed] = {}
        self._unwell_since: float | None = None
        self._told: dict[str, str] = {}
        self._numbers: Iterator[int] = itertools.count(1)

    def round(self) -> None:
        """One look at the source and at what serves, and what follows from it. Nothing in it takes long."""
        self._address.check_alive()
        self._notice_the_dead()
        wanted = self._wanted()
        self._take_what_came_up(wanted)
        self._bring_up(wanted)
        self._retire()
        self._write_state(wanted)

    def end(self, hurry: threading.Event) -> None:
        """Ends what runs: nothing gets a new request, and requests under way are let end unless ``hurry`` is set."""
        for coming in self._coming:
            coming.cancel()
        if self._serving is not None:
            say(TASK, "stopping: requests under way are let end")
            with contextlib.suppress(RunError, OSError):
                self._address.switch(None)
            self._put_aside(self._serving)
            self._serving = None
        self._write_state(None)
        while self._retiring and not hurry.wait(_ENDING_POLL_SECONDS):
            self._retire()
        for old, _ in self._retiring:
            self._beside(old.server.stop)
        for coming in self._coming:
            coming.join(_LAST_SECONDS)
        for thread in self._ending:
            thread.join()

    def _notice_the_dead(self) -> None:
        serving = self._serving
        if serving is None:
            return
        ended = serving.server.poll() is not None
        if not ended and self._is_well(serving.server):
            return
        what = "has ended" if ended else f"has not answered for {self._settings.hung_seconds:.0f} s"
        say(TASK, f"what served {serving.target[:12]} {what}: starting it again; its log is {serving.server.log}")
        self._serving, self._unwell_since = None, None
        self._address.switch(None)
        self._address.forget(serving.backend.name)
        self._beside(serving.server.stop)

    def _is_well(self, server: Server) -> bool:
        """False for a server that said for long that it is not well, or nothing."""
        if server.client.healthy(seconds=_WELL_SECONDS):
            self._unwell_since = None
            return True
        now = time.monotonic()
        self._unwell_since = now if self._unwell_since is None else self._unwell_since
        return now - self._unwell_since < self._settings.hung_seconds

    def _wanted(self) -> Wanted | None:
        """What the source wants; None while that cannot be known, which stops nothing that serves."""
        try:
            wanted = self._source.wanted()
        except (TunegateError, OSError) as error:
            self._say_once(
                "source", f"what {self._source.title} wants cannot be known, and what serves goes on: {error}"
            )
            return None
        self._told.pop("source", None)
        return wanted

    def _target(self, wanted: Wanted | None) -> str:
        """What should serve: what is wanted, unless it was refused; then what served last."""
        refused = wanted is not None and wanted.decision in self._refused
        return wanted.target if wanted is not None and not refused else self._last

    def _take_what_came_up(self, wanted: Wanted | None) -> None:
        """Gives the address to what came up and is wanted; says why something did not."""
        for coming in [each for each in self._coming if each.ended]:
            self._coming.remove(coming)
            target = self._target(wanted)
            if coming.error is not None:
                self._note(coming.target, coming.error, wanted)
            elif coming.target == target or self._serving is None:
                self._switch(coming)
            else:
                self._beside(coming.cancel)

    def _note(self, target: str, error: Exception, wanted: Wanted | None) -> None:
        """Remembers why a target did not come up: refused until there is another decision, or tried again later."""
        if isinstance(error, InputError | GateRefused):
            say(TASK, f"{target[:12]} is refused: {error}")
            if wanted is not None and wanted.target == target:
                self._refused[wanted.decision] = str(error)
            self._last = "" if self._last == target else self._last
            return
        starts = self._failed[target].starts + 1 if target in self._failed else 1
        pause = min(2.0**starts, _LONGEST_PAUSE_SECONDS)
        told = str(error) if isinstance(error, TunegateError | OSError) else f"{type(error).__name__}: {error}"
        self._failed[target] = Failed(starts, time.monotonic() + pause, told)
        say(TASK, f"{target[:12]} did not start, next try in {pause:.0f} s: {told}")

    def _switch(self, coming: Coming) -> None:
        assert coming.ready is not None
        server, names = coming.ready.server, coming.ready.names
        backend = Backend(f"v-{coming.target[:12]}-{next(self._numbers)}", server.url)
        self._give_address(Serving(coming.target, backend, server, names, _now()))

    def _give_address(self, serving: Serving) -> None:
        before = self._serving
        try:
            self._address.switch(serving.backend, names=serving.names)
        except RunError as error:
            self._beside(serving.server.stop)
            self._note(serving.target, error, None)
            return
        self._serving, self._unwell_since, self._last = serving, None, serving.target
        self._failed.pop(serving.target, None)
        if before is not None:
            self._put_aside(before)
        say(TASK, f"{self._source.title} is answered by {serving.target[:12]}, model {serving.server.served_name[:12]}")
        try:
            self._source.keep(serving.target)
        except OSError as error:
            self._say_once("keep", f"files of what was served before are not removed: {error}")

    def _bring_up(self, wanted: Wanted | None) -> None:
        """Starts what should serve and does not; and what served last, while nothing serves."""
        should = [self._target(wanted)]
        if self._serving is None:
            should.append(self._last)
        for coming in [each for each in self._coming if each.target not in should]:
            say(TASK, f"{coming.target[:12]} is no longer wanted")
            self._coming.remove(coming)
            self._beside(coming.cancel)
        for target in dict.fromkeys(should):
            serves = self._serving is not None and self._serving.target == target
            if not target or serves or any(coming.target == target for coming in self._coming):
                continue
            if self._taken_back(target):
                continue
            failed = self._failed.get(target)
            if failed is None or time.monotonic() >= failed.next_try:
                log = self._folder / "logs" / f"{target[:12]}-{next(self._numbers)}.log"
                self._coming.append(
                    Coming(self._source, target, self._where, log=log, ready_seconds=self._settings.ready_seconds)
                )

    def _taken_back(self, target: str) -> bool:
        """Gives the address back to a server that still ends its requests."""
        for old, ends in self._retiring:
            if old.target == target and old.server.poll() is None:
                self._retiring.remove((old, ends))
                self._give_address(old)
                return True
        return False

    def _put_aside(self, old: Serving) -> None:
        self._retiring.append((old, time.monotonic() + self._settings.drain_seconds))

    def _retire(self) -> None:
        """Ends servers whose last request has ended, or has taken too long."""
        for old, ends in list(self._retiring):
            try:
                drained = self._address.drained(old.backend.name)
                if not drained and time.monotonic() < ends and old.server.poll() is None:
                    continue
                if not drained:
                    say(TASK, f"requests of {old.target[:12]} were cut after {self._settings.drain_seconds:.0f} s")
                self._address.forget(old.backend.name)
            except (RunError, OSError) as error:
                say(TASK, f"{old.target[:12]} is stopped without waiting for its requests: {error}")
            self._retiring.remove((old, ends))
            self._beside(old.server.stop)

    def _beside(self, end: Callable[[], None]) -> None:
        """Ends something without a round waiting for it."""
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        self._ending.append(threading.Thread(target=end, daemon=True))
        self._ending[-1].start()

    def _say_once(self, about: str, news: str) -> None:
        if self._told.get(about) != news:
            self._told[about] = news
            say(TASK, news)

    def _write_state(self, wanted: Wanted | None) -> None:
        serving = self._serving
        failed = self._failed.get(wanted.target) if wanted else None
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            **self._source.told(),
            "url": self._address.url,
            "check": self._settings.check,
            "version": serving.target if serving else None,
            "model": serving.server.served_name if serving else None,
            "names": dict(serving.names) if serving else {},
            "since": serving.since if serving else None,
            "server_log": str(serving.server.log) if serving else None,
            "coming": [coming.target for coming in self._coming],
            "refused": self._refused.get(wanted.decision) if wanted else None,
            "failed": failed.why if failed else None,
        }
        data, path = pretty_json(document), self._folder / STATE_NAME
        try:
            if not path.is_file() or path.read_bytes() != data:
                write_atomically(path, data)
            self._told.pop("state", None)
        except OSError as error:
            self._say_once("state", f"the state cannot be written, and what serves goes on: {error}")


def supervise(source: Source, settings: LocalSettings, where: ServeEnvironment, *, folder: Path, stop: Stop) -> None:
    """Serves what a source says until it is told to stop.

    Args:
        source: says what is served; that may change at any time.
        settings: address, and how long things may take.
        where: the environment it is served in.
        folder: where files, logs and state lie; one supervisor at a time.
        stop: when it should end, and whether requests under way are let end first.

    Raises:
        InputError: when there is no Envoy, or the address is taken.
        ConflictError: when another supervisor works in ``folder``.
        RunError: when Envoy ends.
    """
    with alone(folder), Address(folder / "address", host=settings.host, port=settings.port) as address:
        supervisor = Supervisor(source, settings, where, folder=folder, address=address)
        say(TASK, f"{source.title} will answer at {address.url}/v1")
        try:
            while not stop.asked.is_set():
                supervisor.round()
                stop.asked.wait(settings.poll_seconds)
        finally:
            supervisor.end(stop.hurry)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
