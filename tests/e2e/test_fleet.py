"""Eight adapters on one base in a real vLLM: each answers as its own PEFT model does, through whatever changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunegate.fleet.build import read_built
from tunegate.serving.client import Client
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import check_probes, read_probes

pytestmark = pytest.mark.serving
torch = pytest.importorskip("torch")

LONG_SECONDS = 1800.0
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

#: LoRA of several ranks, rsLoRA, ranks by pattern, modules of one layer alone; an AdaLoRA adapter comes beside them.
KINDS: dict[str, dict[str, Any]] = {
    "lora-4": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "lora-16": {"r": 16, "target_modules": ALL, "lora_alpha": 32},
    "lora-5": {"r": 5, "target_modules": ALL},
    "rslora": {"r": 8, "target_modules": ALL, "use_rslora": True},
    "pattern": {"r": 4, "target_modules": ALL, "rank_pattern": {"q_proj": 12}, "alpha_pattern": {"v_proj": 16}},
    "one-layer": {"r": 8, "target_modules": ALL, "layers_to_transform": [1]},
    "mlp": {"r": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "later": {"r": 8, "target_modules": ["q_proj", "o_proj"]},
}
FIRST = [*sorted(KINDS.keys() - {"later"}), "adalora"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def base(make_base: Any) -> Path:
    found: Path = make_base(hidden=128)  # heads of 32, the smallest that vLLM's attention on a CPU knows
    return found


@pytest.fixture(scope="module")
def adapters(place: Path, base: Path) -> dict[str, Path]:
    """Adapters as PEFT saves them, of weights large enough that each answers otherwise than every other one."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    from tunegate.models.load import load_causal_lm

    made = {}
    for seed, (name, options) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(load_causal_lm(base), LoraConfig(task_type="CAUSAL_LM", **options))
        for key, weights in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weights, std=0.1)
        model.save_pretrained(str(place / name))
        made[name] = place / name
    torch.manual_seed(99)
    config = AdaLoraConfig(
        init_r=12, target_r=6, lora_alpha=24, total_step=10, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_causal_lm(base), config)
    masks: dict[str, list[bool]] = {}
    for key, weights in model.base_model.model.named_parameters():
        if "lora_" in key and weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.2)
        if "lora_E" in key:
            masks[key] = (torch.rand(12) < (len(masks) + 1) / 16).tolist()
    model.peft_config["default"].rank_pattern = masks
    model.save_pretrained(str(place / "adalora"))
    return {**made, "adalora": place / "adalora"}


class Served:
    """A supervisor of a fleet file."""

    def __init__(self, place: Path, base: Path, dataset: Path, adapters: dict[str, Path]) -> None:
        self.place, self.base, self.dataset, self.adapters = place, base, dataset, adapters
        self.file, self.folder = place / "fleet.yaml", place / "serving"
        (place / "recipe.yaml").write_text(json.dumps({"serving": {"kv_cache_memory_bytes": 64 << 20}}))

    def write(self, aliases: list[str]) -> None:
        document = {"base": str(self.base), "dataset": str(self.dataset), "probes": {"rows": 3, "max_new_tokens": 12}}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({**document, "adapters": {alias: str(self.adapters[alias]) for alias in aliases}}))
        new.rename(self.file)

    def start(self) -> None:
        command = [sys.executable, "-m", "tunegate", "fleet", "serve", str(self.file), "--folder", str(self.folder)]
        command += [
            "--recipe",
            str(self.place / "recipe.yaml"),
            "--port",
            "0",
            "--set",
            f"deploy.ready_seconds={LONG_SECONDS}",
        ]
        self.supervisor = subprocess.Popen(command)

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def serves(self, aliases: list[str], *, but_log: str = "") -> dict[str, Any]:
        ends = time.monotonic() + LONG_SECONDS
        while set((found := self.state).get("names", {})) != set(aliases) or found["server_log"] == but_log:
            assert self.supervisor.poll() is None and time.monotonic() < ends and not found.get("refused"), found
            time.sleep(0.2)
        return found

    def answers(self, alias: str, tokens: int = 8) -> tuple[str, str]:
        """Which model answers, and what."""
        body = {"model": alias, "prompt": [5, 9, 30, 44, 7, 12], "max_tokens": tokens, "temperature": 0}
        asked = urllib.request.Request(
            f"{self.state['url']}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=LONG_SECONDS) as answer:
            said = json.loads(answer.read())
        return str(said["model"]), str(said["choices"][0]["text"])

    def only_engine(self) -> psutil.Process:
        """The one engine that is left, once the one before has ended."""
        ends = time.monotonic() + LONG_SECONDS
        while len(found := self.engines()) != 1:
            assert time.monotonic() < ends, found
            time.sleep(0.2)
        return found[0]

    def engines(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            itself = words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]  # and not its guard
            if itself and any(str(self.folder) in word for word in words):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def served(
    place: Path, base: Path, adapters: dict[str, Path], tiny_dataset: Path, serve_python: Path
) -> Iterator[Served]:
    found = Served(place, base, tiny_dataset, adapters)
    found.write(FIRST)
    found.start()
    try:
        yield found
    finally:
        found.supervisor.terminate()
        assert found.supervisor.wait(LONG_SECONDS) == 0
        assert found.engines() == []


def test_eight_adapters_answer_as_their_own_peft_models_and_as_no_other(served: Served) -> None:
    """The supervisor held each against PEFT before the first request; here one is held against another's answers."""
    state = served.serves(FIRST)
    built = read_built(served.folder / "fleets" / state["version"])
    assert (len(built.adapters), built.max_loras, built.max_lora_rank) == (8, 8, 16)
    probes = {
        a.alias: read_probes(served.folder / "fleets" / state["version"] / f"probes/{a.alias}.json")
        for a in built.adapters
    }
    client = Client(state["url"])
    for alias, digest in state["names"].items():
        own = check_probes(client, alias, probes[alias], AnswerLimits())
        print(alias, own.to_json())
        assert own.passed, own.reasons
        assert served.answers(alias)[0] == digest
    other = check_probes(client, "lora-16", probes["rslora"], AnswerLimits())
    assert any(reason.startswith("min agreement") for reason in other.reasons)
    said = {alias: served.answers(alias, tokens=16)[1] for alias in FIRST}
    assert len(set(said.values())) == 8, said


def test_adapters_are_added_and_removed_under_load_and_come_back_after_a_kill(served: Served) -> None:
    before = served.serves(FIRST)
    digest, expected = served.answers("rslora")
    failed: list[Exception] = []
    answered: list[tuple[str, str]] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answered.append(served.answers("rslora"))
            except Exception as error:
                failed.append(error)
            time.sleep(0.2)

    now = [*(alias for alias in FIRST if alias not in ("mlp", "lora-4")), "later"]
    thread = threading.Thread(target=load)
    thread.start()
    served.write(now)
    try:
        after = served.serves(now)
    finally:
        done.set()
        thread.join()
    assert (failed, set(answered), after["url"]) == ([], {(digest, expected)}, before["url"])
    assert served.answers("later")[0] == after["names"]["later"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.answers("mlp")
    assert refused.value.code == 404
    engine = served.only_engine()
    os.kill(engine.pid, signal.SIGKILL)
    again = served.serves(now, but_log=after["server_log"])
    assert again["names"] == after["names"]
    assert served.answers("rslora") == (digest, expected)
