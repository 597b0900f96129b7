"""The demo, served by real vLLM behind the real Envoy: what was judged answers, through switch, crash and rollback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.registry.aliases import current, promote, read_alias
from tunegate.registry.versions import Part, publish
from tunegate.serving.flags import ServingFlags
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

pytestmark = pytest.mark.e2e

ALIAS = "served"
LONG_SECONDS = 3600.0


@pytest.fixture(scope="module")
def storage(place: Path) -> Storage:
    return open_storage(str(place / "registry"))


@pytest.fixture(scope="module")
def first(demo: Any, storage: Storage) -> str:
    """What the demo promoted."""
    record = current(storage, "demo")
    assert record is not None and demo.code == 0
    return record.version


@pytest.fixture(scope="module")
def make_version(place: Path, storage: Storage) -> Callable[..., str]:
    """Publishes a version out of folders of artifacts, with a verdict of PASS on them."""

    def make(name: str, **folders: Path) -> str:
        parts = {role: Part(folder, verify(folder)) for role, folder in folders.items()}
        subjects = {role: part.manifest.content_digest for role, part in parts.items()} | {"dataset": "d" * 64}
        verdict = Verdict("PASS", "All.", (Check("gain", "PASS", "shown"),), subjects, "p" * 64)

        def judge(folder: Path) -> None:
            verdict.write(folder)
            (folder / "policy.json").write_bytes(pretty_json({"serving": {}}))

        output = place / f"verdict-{name}"
        made = produce(output, kind="verdict", parents=subjects, settings={}, build=judge)
        return publish(storage, {**parts, "verdict": Part(output, made)})

    return make


@pytest.fixture(scope="module")
def second(demo: Any, place: Path, make_version: Callable[..., str]) -> tuple[str, str]:
    """A version with another model, the demo's base, served and checked as the demo's was; and that model's digest."""
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run as quantize
    from tunegate.serve_check.settings import ServeCheckSettings
    from tunegate.serve_check.step import run as serve_check

    model, dataset = place / "second" / "quantized", demo.artifact("dataset")
    base = demo.folder / "inputs" / "base_model"
    quantize(QuantizeSettings(scheme="FP8_DYNAMIC"), model=base, dataset=dataset, output=model)
    evaluation, serving = place / "second" / "evaluation", place / "second" / "serving"
    few = EvaluateSettings(tasks=("tool_call",), limit=1, max_new_tokens=8)
    evaluate(few, model=model, dataset=dataset, output=evaluation)
    serve_check(
        ServeCheckSettings(enabled=True, rows=2, max_new_tokens=16, rows_at_once=2, ready_seconds=LONG_SECONDS),
        ServingFlags(),
        model=model,
        dataset=dataset,
        evaluation=evaluation,
        output=serving,
    )
    return make_version("second", quantized=model, serving=serving), verify(model).content_digest


class Served:
    """A supervisor of the alias."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "served"
        options = ["--folder", str(self.folder), "--port", "0", "--set", f"deploy.ready_seconds={LONG_SECONDS}"]
        command = [sys.executable, "-m", "tunegate", "deploy", str(place / "registry"), ALIAS, *options]
        self.supervisor = subprocess.Popen(command)

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def until(self, reached: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        ends = time.monotonic() + LONG_SECONDS
        while not (found := self.state) or not reached(found):
            assert self.supervisor.poll() is None and time.monotonic() < ends, found
            time.sleep(0.2)
        return found

    def serves(self, version: str, but_log: str = "") -> dict[str, Any]:
        return self.until(lambda state: state["version"] == version and state["server_log"] != but_log)

    def answers(self, tokens: int = 2) -> tuple[str, str]:
        """Which model answers, and what."""
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": ALIAS, "messages": messages, "max_tokens": tokens, "temperature": 0}
        sent = urllib.request.Request(
            f"{self.state['url']}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent, timeout=LONG_SECONDS) as answer:
            said = json.loads(answer.read())
        return str(said["model"]), str(said["choices"][0]["message"]["content"])

    def engines(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            itself = words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]  # and not its guard
            if itself and any(str(self.folder) in word for word in words):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def served(place: Path, storage: Storage, first: str, second: tuple[str, str]) -> Iterator[Served]:
    promote(storage, read_alias(storage, ALIAS), first, verdict="v", attempt="first")
    found = Served(place)
    try:
        yield found
    finally:
        found.supervisor.terminate()
        assert found.supervisor.wait(LONG_SECONDS) == 0
        assert found.engines() == []


def test_what_the_demo_promoted_answers_under_the_digest_that_was_judged(served: Served, first: str, demo: Any) -> None:
    served.serves(first)
    assert served.answers()[0] == verify(demo.artifact("quantized")).content_digest


def test_a_second_version_takes_over_under_load_and_comes_back_after_a_kill(
    served: Served, storage: Storage, first: str, second: tuple[str, str], demo: Any
) -> None:
    version, model = second
    before = served.serves(first)
    failed: list[Exception] = []
    answered: list[str] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answered.append(served.answers()[0])
            except Exception as error:
                failed.append(error)
            time.sleep(0.2)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        promote(storage, read_alias(storage, ALIAS), version, verdict="v", attempt="second")
        after = served.serves(version)
        assert served.answers(16)[1].startswith("The capital of France is Paris")
    finally:
        done.set()
        thread.join()
    assert (failed, set(answered), after["url"]) == (
        [],
        {verify(demo.artifact("quantized")).content_digest, model},
        before["url"],
    )
    served.until(lambda _: len(served.engines()) == 1)
    (engine,) = served.engines()
    os.kill(engine.pid, signal.SIGKILL)
    served.serves(version, but_log=after["server_log"])
    assert served.answers()[0] == model


def test_a_version_that_was_corrupted_after_its_gate_is_refused_and_a_rollback_brings_the_first_one_back(
    served: Served, place: Path, storage: Storage, first: str, second: tuple[str, str], demo: Any,
    make_version: Callable[..., str],
) -> None:  # fmt: skip
    folders = {"quantized": place / "second" / "quantized", "serving": place / "second" / "serving"}
    bad = make_version("third", **folders, **{"evaluations/quantized": place / "second" / "evaluation"})
    path = place / "registry" / "versions" / bad / "quantized" / "model.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as file:  # one bit of one weight
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    promote(storage, read_alias(storage, ALIAS), bad, verdict="v", attempt="third")
    state = served.until(lambda state: state["refused"])
    assert "model.safetensors" in state["refused"]
    assert (state["version"], served.answers()[0]) == second
    for _ in range(2):  # to the second, which serves, and to the first
        back = [sys.executable, "-m", "tunegate", "rollback", str(place / "registry"), ALIAS]
        subprocess.run(back, check=True)
    served.serves(first)
    assert served.answers()[0] == verify(demo.artifact("quantized")).content_digest
