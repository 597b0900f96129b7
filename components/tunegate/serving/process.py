"""A vLLM process: started, watched until it is ready, and stopped whatever happens to the one who started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tunegate.contracts.errors import Interrupted, RunError
from tunegate.contracts.manifest import input_digest
from tunegate.contracts.progress import say
from tunegate.serving.client import Client
from tunegate.serving.engine import Engine, command_line, process_environment
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.guarded import Guarded
from tunegate.serving.listening import listening_port, listening_url
from tunegate.serving.log import last_line, telling_lines

TASK = "serve"

#: How long loading may take. On two cores vLLM takes 70 to 80 s before it has looked at a weight.
READY_SECONDS = 900.0

#: How long vLLM may take to end by itself before it is killed.
STOP_SECONDS = 20.0

_POLL_SECONDS = 0.25
_SAY_SECONDS = 10.0


class Server:
    """A vLLM process that is ready. Leaving it as a context stops it.

    Attributes:
        served_name: what requests call the model.
        digests: served name → content digest of the folder it is loaded from, as verified before the start.
        url: where it answers.
        log: its log.
        started_seconds: how long it took until it was ready.
    """

    def __init__(self, process: Guarded, *, served_name: str, digests: Mapping[str, str], url: str, log: Path) -> None:
        self.served_name, self.digests, self.url, self.log = served_name, dict(digests), url, log
        self.started_seconds = 0.0
        self._process = process

    @property
    def group(self) -> int:
        """The id of the process group of vLLM and its workers; 0 once it has ended."""
        return self._process.group

    @property
    def client(self) -> Client:
        """Asks this server."""
        return Client(self.url)

    def poll(self) -> int | None:
        """The exit code of a server that has ended, None while it runs."""
        return self._process.poll()

    def check_alive(self) -> None:
        """Raises RunError, with what its log tells, when the server has ended."""
        code = self.poll()
        if code is not None:
            raise ended("vLLM ended while it was needed.", code, self.log)

    def stop(self) -> None:
        """Ends the server and every process it started; returns when none is left. A second time does nothing."""
        self._process.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    engine: Engine,
    where: ServeEnvironment,
    *,
    log: Path,
    ready_seconds: float = READY_SECONDS,
    stop_seconds: float = STOP_SECONDS,
    cancelled: threading.Event | None = None,
) -> Server:
    """Starts vLLM and returns when it serves.

    Args:
        engine: what is served and how. A model or adapter that is an artifact is verified first.
        where: the environment to start it in.
        log: the file that gets all that vLLM says; written anew.
        ready_seconds: how long it may take until it serves.
        stop_seconds: how long it may take to end before it is killed.
        cancelled: set when it is no longer wanted: it is stopped, and Interrupted raised.

    Raises:
        ArtifactError: when the model or an adapter is not what its manifest says.
        SettingsError, AdapterError: when vLLM could not be started so.
        RunError: when it ends or is not ready in time; nothing runs then.
    """
    say(TASK, f"verifying {engine.model}")
    model_digest = input_digest(engine.model)
    served_name = engine.served_name or model_digest
    digests = {served_name: model_digest} | {name: input_digest(path) for name, path in engine.lora_modules.items()}
    port = listening_port("vLLM", engine.host, engine.port)
    command = command_line(engine, where, served_name=served_name, port=port)
    begin = time.monotonic()
    process = Guarded(command, process_environment(engine, os.environ), log=log, stop_seconds=stop_seconds)
    server = Server(process, served_name=served_name, digests=digests, url=listening_url(engine.host, port), log=log)
    try:
        say(TASK, f"starting vLLM {where.vllm_version}, log {log}")
        _wait_until_ready(server, cancelled or threading.Event(), ready_seconds=ready_seconds)
    except BaseException:
        server.stop()
        raise
    server.started_seconds = time.monotonic() - begin
    say(TASK, f"serving {served_name} at {server.url} after {server.started_seconds:.0f} s")
    return server


def _wait_until_ready(server: Server, cancelled: threading.Event, *, ready_seconds: float) -> None:
    """Returns when the server is well, lists every name it should, and has answered under each.

    Raises:
        RunError: when it ends, is not ready in time, cannot answer, or something else answers in its place.
        Interrupted: when it is no longer wanted.
    """
    begin = said = time.monotonic()
    while not server.client.healthy():
        now = time.monotonic()
        code = server.poll()
        if code is not None:
            raise ended("vLLM ended before it was ready.", code, server.log)
        if now - begin > ready_seconds:
            raise RunError(
                "vLLM was not ready in time.",
                seen=f"no answer at {server.url}/health after {ready_seconds:.0f} s",
                expected="a server that answers",
                remedy=f"read {server.log}; where it is only slow, allow it more time",
                items=telling_lines(server.log),
            )
        if now - said > _SAY_SECONDS:
            said = now
            say(TASK, f"loading since {now - begin:.0f} s · {last_line(server.log)[:100]}")
        if cancelled.wait(_POLL_SECONDS):
            raise Interrupted(
                "The server is no longer wanted.",
                seen="it was still loading",
                expected="a server that is waited for",
                remedy="nothing: what is wanted now is started",
            )
    served = [model.name for model in server.client.models()]
    code = server.poll()
    if code is not None:
        raise ended("vLLM ended before it was ready, and another server answers in its place.", code, server.log)
    missing = [name for name in server.digests if name not in served]
    if missing:
        raise RunError(
            f"The server at {server.url} serves something else.",
            seen=f"models {', '.join(served) or '(none)'}",
            expected=f"models {', '.join(server.digests)}",
            remedy=f"read {server.log}; check what else listens on that port",
            items=missing,
        )
    for name in server.digests:
        _ask_one_token(server, name)


def _ask_one_token(server: Server, name: str) -> None:
    """A first answer: vLLM says that it is well before it has run a kernel, and may have none for this CPU.

    Raises:
        RunError: when the server fails at it.
    """
    try:
        server.client.complete([0], model=name, max_tokens=1)
    except RunError as error:
        raise RunError(
            f"vLLM is up and cannot answer as {name}.",
            seen=error.seen,
            expected="one token",
            remedy=f"read {server.log}; check that this machine has the kernels that the model's scheme needs",
            items=telling_lines(server.log),
        ) from error


def ended(failed: str, code: int, log: Path) -> RunError:
    """The error of a server that is no more, with what its log tells."""
    by = f"signal {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit code {code}"
    return RunError(
        failed,
        seen=by,
        expected="a server that runs until it is stopped",
        remedy=f"the log tells more: {log}",
        items=telling_lines(log),
    )
