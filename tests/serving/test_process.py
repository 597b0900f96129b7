"""Supervision: a server is ready or it is an error that tells why, and whatever happens to its owner, none is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tunegate.contracts.errors import ArtifactError, RunError, SettingsError
from tunegate.contracts.manifest import read_manifest
from tunegate.serving.engine import Engine
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.process import start

Told = Callable[..., Engine]

#: Far longer than anything here takes: what is waited for has happened, or never will.
PATIENCE_SECONDS = 60.0


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def processes_of(place: Path) -> list[int]:
    """The living processes whose command names a folder of this test."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        named = any(str(place) in word for word in process.info["cmdline"] or ())
        if named and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process.pid)
    return found


def none_left(left: Callable[[], list[int]]) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while left() and time.monotonic() < end:
        time.sleep(0.05)
    return not left()


@pytest.fixture(autouse=True)
def nothing_survives_the_test(tmp_path: Path) -> Iterator[None]:
    yield
    assert none_left(lambda: processes_of(tmp_path))


def test_a_slow_server_is_waited_for_and_serves_under_its_digest(
    told: Told, where: ServeEnvironment, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = read_manifest(model).content_digest
    with start(told(delay=1.0), where, log=tmp_path / "logs" / "serve.log") as server:
        assert server.started_seconds >= 1.0
        assert server.served_name == digest
        assert server.digests == {digest: digest}
        assert [(card.name, card.root) for card in server.client.models()] == [(digest, str(model))]
        assert server.poll() is None
        server.check_alive()
    assert server.poll() is not None
    assert f"serving {digest} at {server.url}" in capsys.readouterr().out


def test_a_server_that_ends_early_is_reported_with_what_its_log_tells(
    told: Told, where: ServeEnvironment, tmp_path: Path
) -> None:
    says = "INFO loading\n(EngineCore pid=7) ERROR 11-24 04:15:41 [core.py:1] ValueError: head size 16 is not supported"
    with pytest.raises(RunError, match="ended before it was ready") as raised:
        start(told(code=3, says=says), where, log=tmp_path / "serve.log")
    assert raised.value.seen == "exit code 3"
    assert raised.value.items == ("ValueError: head size 16 is not supported",)


def test_a_server_of_another_model_is_refused_and_stopped(told: Told, where: ServeEnvironment, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="serves something else") as raised:
        start(told(names=["somebody-elses"]), where, log=tmp_path / "serve.log")
    assert raised.value.seen == "models somebody-elses"


def test_a_server_that_is_well_and_cannot_answer_is_not_ready(
    told: Told, where: ServeEnvironment, tmp_path: Path
) -> None:
    """vLLM says so of a scheme that it has no kernel for on this CPU (W4A16 without AVX512)."""
    with pytest.raises(RunError, match="up and cannot answer") as raised:
        start(told(dumb=True), where, log=tmp_path / "serve.log")
    assert raised.value.items == ("AttributeError: no such kernel",)


def test_a_server_that_is_never_ready_is_given_up_and_stopped(
    told: Told, where: ServeEnvironment, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="not ready in time"):
        start(told(delay=600), where, log=tmp_path / "serve.log", ready_seconds=1.0)


def test_a_server_that_ignores_sigterm_is_killed_with_its_workers(
    told: Told, where: ServeEnvironment, tmp_path: Path
) -> None:
    server = start(told(deaf=True), where, log=tmp_path / "serve.log", stop_seconds=0.5)
    group = server.group
    assert len(members(group)) == 2
    server.stop()
    assert none_left(lambda: members(group))
    server.stop()


def test_an_exception_while_it_serves_stops_it(told: Told, where: ServeEnvironment, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start(told(), where, log=tmp_path / "serve.log"):
        raise KeyboardInterrupt


def test_a_crash_is_seen_and_its_workers_are_ended(told: Told, where: ServeEnvironment, tmp_path: Path) -> None:
    with start(told(deaf=True), where, log=tmp_path / "serve.log") as server:
        group = server.group
        os.kill(group, signal.SIGKILL)  # the group bears its first process's id: that is the server, not a worker
        end = time.monotonic() + PATIENCE_SECONDS
        while server.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(RunError, match="ended while it was needed") as raised:
            server.check_alive()
        assert raised.value.seen == "signal SIGKILL"
        assert none_left(lambda: members(group))


def test_a_guard_that_is_killed_leaves_no_server_behind(told: Told, where: ServeEnvironment, tmp_path: Path) -> None:
    with start(told(deaf=True), where, log=tmp_path / "serve.log") as server:
        group = server.group
        psutil.Process(group).parent().kill()
        end = time.monotonic() + PATIENCE_SECONDS
        while server.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert none_left(lambda: members(group))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_server_whose_owner_is_killed(
    number: signal.Signals, where: ServeEnvironment, model: Path, tmp_path: Path
) -> None:
    owner = textwrap.dedent(
        f"""
        import threading, time
        from pathlib import Path
        from tunegate.serving.engine import Engine
        from tunegate.serving.environment import ServeEnvironment
        from tunegate.serving.process import start

        def serve():  # a thread that ends: the server belongs to the process
            told = {{"STAND_IN": '{json.dumps({"deaf": True})}'}}
            where = ServeEnvironment(Path({str(where.python)!r}), "0.32.0", cpu=True)
            server = start(Engine(Path({str(model)!r}), environment=told), where,
                           log=Path({str(tmp_path)!r}) / "serve.log", stop_seconds=0.5)
            servers.append(server)
            print("group", server.group, flush=True)

        servers = []
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        group = next(int(line.split()[1]) for line in process.stdout if line.startswith("group"))
        assert len(members(group)) == 2
        process.send_signal(number)
    assert none_left(lambda: members(group))


def test_a_port_in_use_is_refused_before_anything_starts(where: ServeEnvironment, model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        engine = Engine(model, port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match="cannot listen"):
            start(engine, where, log=tmp_path / "serve.log")
    assert not (tmp_path / "serve.log").exists()


def test_a_changed_model_is_refused_before_anything_starts(
    where: ServeEnvironment, model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        start(Engine(model), where, log=tmp_path / "serve.log")
    assert not (tmp_path / "serve.log").exists()


def test_secrets_and_proxies_of_our_environment_do_not_reach_the_server(
    told: Told, where: ServeEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "VLLM_API_KEY", "HTTPS_PROXY", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    with start(told(note=str(tmp_path / "note")), where, log=tmp_path / "serve.log"):
        seen = json.loads((tmp_path / "note").read_text("utf-8"))
    assert "secret" not in seen.values()
    assert seen["HF_HUB_OFFLINE"] == seen["VLLM_NO_USAGE_STATS"] == seen["DO_NOT_TRACK"] == "1"
