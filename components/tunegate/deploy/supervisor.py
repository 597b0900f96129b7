"""Serves on this machine what a source says: that is held against what answers, again and again.

What the source moves to is fetched, verified, started beside what serves, asked, and only then given the stable
address; the old server ends when its last request has. What is refused changes nothing: the old one serves on. A server
that dies is started again on the same bytes. Nothing is remembered between two runs but the files: whatever is killed,
the next start begins from what the source says.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ConflictError, GateRefused, InputError, RunError, TunegateError
from tunegate.contracts.files import pretty_json, write_atomically
from tunegate.contracts.progress import say
from tunegate.deploy.settings import LocalSettings
from tunegate.deploy.source import Source, Wanted
from tunegate.deploy.versions import TASK
from tunegate.serving.address import Address
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.envoy_documents import Backend
from tunegate.serving.process import Server, start

STATE_NAME = "state.json"
SCHEMA_VERSION = 1

_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """What is served, where and how: all that does not change while the supervisor runs."""

    source: Source
    folder: Path
    settings: LocalSettings
    where: ServeEnvironment
    address: Address


@dataclass(frozen=True)
class Serving:
    """A server that has the stable address."""

    target: str
    backend: Backend
    server: Server
    names: Mapping[str, str]
    since: str


@dataclass
class Standing:
    """Where things stand.

    Attributes:
        serving: what has the address; None while nothing does.
        last: what served last.
        refused: decision → why its target is not served. It is tried again when there is another decision.
        failures: starts that failed one behind the other.
        next_try: before this (monotonic), nothing is started again.
        told: what was said last of the source, so that it is said once.
    """

    serving: Serving | None = None
    last: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    next_try: float = 0.0
    told: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def supervise(
    source: Source,
    settings: LocalSettings,
    where: ServeEnvironment,
    *,
    folder: Path,
    stopping: threading.Event,
) -> None:
    """Serves what a source says until it is told to stop.

    Args:
        source: says what is served; that may change at any time.
        settings: address, and how long things may take.
        where: the environment it is served in.
        folder: where files, logs and state lie; one supervisor at a time.
        stopping: set when it should end: requests under way are let end first.

    Raises:
        InputError: when there is no Envoy, or the address is taken.
        ConflictError: when another supervisor works in ``folder``.
        RunError: when Envoy ends.
    """
    with _alone(folder), Address(folder / "address", host=settings.host, port=settings.port) as address:
        place = Place(source, folder, settings, where, address)
        standing = Standing()
        say(TASK, f"{source.title} will answer at {address.url}/v1")
        try:
            while not stopping.is_set():
                address.check_alive()
                _round(place, standing)
                stopping.wait(settings.poll_seconds)
        finally:
            if standing.serving is not None:
                say(TASK, "stopping: requests under way are let end")
                _retire(place, standing.serving)
                standing.serving = None
            _write_state(place, standing, None)


def read_state(folder: Path) -> dict[str, Any]:
    """What a supervisor says of itself, with whether it runs.

    Raises:
        InputError: when none ever worked in ``folder``.
    """
    import json

    path = folder / STATE_NAME
    if not path.is_file():
        raise InputError(
            f"Nothing was ever served from {folder}.",
            seen=f"no {STATE_NAME}",
            expected="the folder that `tunegate deploy` was given",
            remedy="start `tunegate deploy`, or name its --folder",
        )
    state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state["running"] = False
        except BlockingIOError:
            state["running"] = True
    return state


def _round(place: Place, standing: Standing) -> None:
    """One look at the source and at what serves, and what follows from it."""
    _notice_the_dead(place, standing)
    wanted = _wanted(place, standing)
    refused = wanted is not None and wanted.decision in standing.refused
    target = wanted.target if wanted is not None and not refused else standing.last
    runs = standing.serving is not None and standing.serving.target == target
    if target and not runs and time.monotonic() >= standing.next_try:
        _try(place, standing, target, wanted)
    _write_state(place, standing, wanted)


def _notice_the_dead(place: Place, standing: Standing) -> None:
    dead = standing.serving
    if dead is None or dead.server.poll() is None:
        return
    say(TASK, f"what served {dead.target[:12]} has ended: starting it again; its log is {dead.server.log}")
    place.address.switch(None)
    place.address.forget(dead.backend.name)
    standing.serving = None


def _wanted(place: Place, standing: Standing) -> Wanted | None:
    """What the source wants; None while that cannot be known, which stops nothing that serves."""
    try:
        wanted = place.source.wanted()
    except (TunegateError, OSError) as error:
        _say_once(standing, f"what {place.source.title} wants cannot be known, and what serves goes on: {error}")
        return None
    standing.told = ""
    return wanted


def _try(place: Place, standing: Standing, target: str, wanted: Wanted | None) -> None:
    """Brings a target up. What is refused waits for a new decision; what failed is tried again, later each time."""
    try:
        serving = _brought_up(place, standing, target)
    except (InputError, GateRefused) as error:
        say(TASK, f"{target[:12]} is refused: {error}")
        if wanted is not None and wanted.target == target:
            standing.refused[wanted.decision] = str(error)
        standing.last = "" if standing.last == target else standing.last
        return
    except (RunError, OSError) as error:
        standing.failures += 1
        pause = min(2.0**standing.failures, _LONGEST_PAUSE_SECONDS)
        standing.next_try = time.monotonic() + pause
        say(TASK, f"{target[:12]} did not start, next try in {pause:.0f} s: {error}")
        return
    standing.failures, standing.next_try = 0, 0.0
    before, standing.serving, standing.last = standing.serving, serving, target
    _write_state(place, standing, wanted)
    if before is not None:
        _retire(place, before)
    place.source.keep(target)


def _brought_up(place: Place, standing: Standing, target: str) -> Serving:
    """A target that has the stable address: verified, started, asked."""
    prepared = place.source.prepare(target)
    name = f"v-{target[:12]}-{next(standing.numbers)}"
    log = place.folder / "logs" / f"{name}.log"
    server = start(prepared.engine, place.where, log=log, ready_seconds=place.settings.ready_seconds)
    try:
        prepared.check(server)
        backend = Backend(name, server.url)
        place.address.switch(backend, names=prepared.names)
    except BaseException:
        server.stop()
        raise
    say(TASK, f"{place.source.title} is answered by {target[:12]}, model {server.served_name[:12]}")
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Serving(target, backend, server, prepared.names, since)


def _retire(place: Place, old: Serving) -> None:
    """Ends a server when its last request has ended, or when they have taken too long."""
    try:
        if not place.address.drain(old.backend.name, seconds=place.settings.drain_seconds):
            say(TASK, f"requests of {old.target[:12]} were cut after {place.settings.drain_seconds:.0f} s")
        place.address.forget(old.backend.name)
    except (RunError, OSError) as error:
        say(TASK, f"{old.target[:12]} is stopped without waiting for its requests: {error}")
    finally:
        old.server.stop()


def _say_once(standing: Standing, news: str) -> None:
    if standing.told != news:
        standing.told = news
        say(TASK, news)


def _write_state(place: Place, standing: Standing, wanted: Wanted | None) -> None:
    serving = standing.serving
    document = {
        "schema_version": SCHEMA_VERSION,
        **place.source.told(),
        "url": place.address.url,
        "check": place.settings.check,
        "version": serving.target if serving else None,
        "model": serving.server.served_name if serving else None,
        "names": dict(serving.names) if serving else {},
        "since": serving.since if serving else None,
        "server_log": str(serving.server.log) if serving else None,
        "refused": standing.refused.get(wanted.decision) if wanted else None,
    }
    data = pretty_json(document)
    path = place.folder / STATE_NAME
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"Another supervisor works in {folder}.",
                seen="a lock that is held",
                expected="one supervisor for each folder",
                remedy="stop the other one, or give another --folder",
            ) from error
        yield
