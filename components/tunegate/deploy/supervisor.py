"""Serves an alias on this machine: what the registry says is held against what answers, again and again.

A version that the alias moves to is fetched, verified, started beside the one that serves, asked, and only then given
the stable address; the old one ends when its last request has. What is refused changes nothing: the old one serves on.
A server that dies is started again on the same bytes. Nothing is remembered between two runs but the files: whatever is
killed, the next start begins from what the registry says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ConflictError, GateRefused, InputError, RunError, TunegateError
from tunegate.contracts.files import pretty_json, write_atomically
from tunegate.contracts.progress import say
from tunegate.deploy.check import probes_of, refuse_other_answers, refuse_other_flags
from tunegate.deploy.settings import LocalSettings
from tunegate.deploy.versions import SERVED, TASK, keep_newest, version_here
from tunegate.registry.aliases import current
from tunegate.registry.records import Record
from tunegate.registry.settings import SigningSettings
from tunegate.serving.address import Address
from tunegate.serving.envoy_documents import Backend
from tunegate.serving.environment import ServeEnvironment, find_environment
from tunegate.serving.flags import ServingFlags, production_engine
from tunegate.serving.process import Server, start
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

STATE_NAME = "state.json"
SCHEMA_VERSION = 1

_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """What is served, where and how: all that does not change while the supervisor runs."""

    storage: Storage
    alias: str
    folder: Path
    settings: LocalSettings
    flags: ServingFlags
    signing: SigningSettings
    where: ServeEnvironment
    address: Address


@dataclass(frozen=True)
class Serving:
    """A server that has the stable address."""

    version: str
    backend: Backend
    server: Server
    since: str


@dataclass
class Standing:
    """Where things stand.

    Attributes:
        serving: what has the address; None while nothing does.
        last: the version that served last.
        refused: record of the alias → why its version is not served. It is tried again when the alias moves.
        failures: starts that failed one behind the other.
        next_try: before this (monotonic), nothing is started again.
        told: what was said last of the registry, so that it is said once.
    """

    serving: Serving | None = None
    last: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    next_try: float = 0.0
    told: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def supervise(
    settings: LocalSettings,
    flags: ServingFlags,
    signing: SigningSettings,
    *,
    registry: str,
    alias: str,
    folder: Path,
    stopping: threading.Event,
) -> None:
    """Serves an alias until it is told to stop.

    Args:
        settings: address, check, and how long things may take.
        flags: the flags of production.
        signing: whose signature counts.
        registry: a folder or URI.
        alias: what is served; it may move at any time.
        folder: where files, logs and state lie; one supervisor at a time.
        stopping: set when it should end: requests under way are let end first.

    Raises:
        InputError: when there is no such alias, no serving environment, no Envoy, or the address is taken.
        ConflictError: when another supervisor works in ``folder``.
        RunError: when Envoy ends.
    """
    storage, where = open_storage(registry), find_environment(settings.python)
    if current(storage, alias) is None:
        raise InputError(
            f"There is no alias {alias} in {registry} to serve.",
            seen="no such alias",
            expected="an alias that points at a promoted version",
            remedy="promote one first, or name another alias: `tunegate registry list`",
        )
    with _alone(folder), Address(folder / "address", host=settings.host, port=settings.port) as address:
        place = Place(storage, alias, folder, settings, flags, signing, where, address)
        standing = Standing()
        say(TASK, f"{alias} will answer at {address.url}/v1")
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
    """One look at the registry and at what serves, and what follows from it."""
    _notice_the_dead(place, standing)
    record = _wanted(place, standing)
    refused = record is not None and record.digest in standing.refused
    target = record.version if record is not None and not refused else standing.last
    runs = standing.serving is not None and standing.serving.version == target
    if target and not runs and time.monotonic() >= standing.next_try:
        _try(place, standing, target, record)
    _write_state(place, standing, record)


def _notice_the_dead(place: Place, standing: Standing) -> None:
    dead = standing.serving
    if dead is None or dead.server.poll() is None:
        return
    say(TASK, f"what served {dead.version[:12]} has ended: starting it again; its log is {dead.server.log}")
    place.address.switch(None)
    place.address.forget(dead.backend.name)
    standing.serving = None


def _wanted(place: Place, standing: Standing) -> Record | None:
    """The record the alias points at; None while the registry cannot be read, which stops nothing that serves."""
    try:
        record = current(place.storage, place.alias)
    except (TunegateError, OSError) as error:
        _say_once(standing, f"the registry cannot be read, and what serves goes on: {error}")
        return None
    standing.told = ""
    return record


def _try(place: Place, standing: Standing, version: str, record: Record | None) -> None:
    """Brings a version up. What is refused waits for the alias to move; what failed is tried again, later each time."""
    try:
        serving = _brought_up(place, standing, version)
    except (InputError, GateRefused) as error:
        say(TASK, f"{version[:12]} is refused: {error}")
        if record is not None and record.version == version:
            standing.refused[record.digest] = str(error)
        standing.last = "" if standing.last == version else standing.last
        return
    except (RunError, OSError) as error:
        standing.failures += 1
        pause = min(2.0**standing.failures, _LONGEST_PAUSE_SECONDS)
        standing.next_try = time.monotonic() + pause
        say(TASK, f"{version[:12]} did not start, next try in {pause:.0f} s: {error}")
        return
    standing.failures, standing.next_try = 0, 0.0
    before, standing.serving, standing.last = standing.serving, serving, version
    _write_state(place, standing, record)
    if before is not None:
        _retire(place, before)
    keep_newest(place.folder / "versions", place.settings.kept_versions, serving=version)


def _brought_up(place: Place, standing: Standing, version: str) -> Serving:
    """A version that has the stable address: verified, started, asked."""
    say(TASK, f"{place.alias} points at {version[:12]}: fetching and verifying")
    folder = version_here(place.storage, version, place.folder / "versions", place.signing)
    os.utime(folder)  # the newest is what was served last
    probes = None
    if place.settings.check == "probes":
        probes = probes_of(folder)
        refuse_other_flags(folder, place.flags, place.where)
    name = f"v-{version[:12]}-{next(standing.numbers)}"
    engine = production_engine(place.flags, folder / SERVED, place.where)
    engine = dataclasses.replace(engine, further_names=(place.alias,))
    log = place.folder / "logs" / f"{name}.log"
    server = start(engine, place.where, log=log, ready_seconds=place.settings.ready_seconds)
    try:
        if probes is not None:
            refuse_other_answers(server, probes, folder)
        backend = Backend(name, server.url)
        place.address.switch(backend)
    except BaseException:
        server.stop()
        raise
    say(TASK, f"{place.alias} is answered by {version[:12]}, model {server.served_name[:12]}")
    return Serving(version, backend, server, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def _retire(place: Place, old: Serving) -> None:
    """Ends a server when its last request has ended, or when they have taken too long."""
    try:
        if not place.address.drain(old.backend.name, seconds=place.settings.drain_seconds):
            say(TASK, f"requests of {old.version[:12]} were cut after {place.settings.drain_seconds:.0f} s")
        place.address.forget(old.backend.name)
    except (RunError, OSError) as error:
        say(TASK, f"{old.version[:12]} is stopped without waiting for its requests: {error}")
    finally:
        old.server.stop()


def _say_once(standing: Standing, news: str) -> None:
    if standing.told != news:
        standing.told = news
        say(TASK, news)


def _write_state(place: Place, standing: Standing, record: Record | None) -> None:
    serving = standing.serving
    document = {
        "schema_version": SCHEMA_VERSION,
        "registry": place.storage.uri,
        "alias": place.alias,
        "url": place.address.url,
        "check": place.settings.check,
        "version": serving.version if serving else None,
        "model": serving.server.served_name if serving else None,
        "since": serving.since if serving else None,
        "server_log": str(serving.server.log) if serving else None,
        "refused": standing.refused.get(record.digest) if record else None,
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
