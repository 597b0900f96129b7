"""The command line: what was judged is what is served; what would undo that is refused before a minute is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.serving.engine import CPU_KV_CACHE_BYTES, Engine, command_line
from tunegate.serving.environment import ServeEnvironment

CPU = ServeEnvironment(Path("/serve/bin/python"), "0.32.0", cpu=True)
GPU = ServeEnvironment(Path("/serve/bin/python"), "0.32.0", cpu=False)


def line(engine: Engine, where: ServeEnvironment = CPU) -> list[str]:
    return command_line(engine, where, served_name="the-model", port=8123)


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_the_model_is_served_from_safetensors_under_its_name_alone() -> None:
    command = line(Engine(Path("/model"), dtype="float32", max_model_len=512))
    assert command[:3] == ["/serve/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    stated = {"--model": "/model", "--served-model-name": "the-model", "--host": "127.0.0.1", "--port": "8123"}
    stated |= {"--dtype": "float32", "--max-model-len": "512", "--load-format": "safetensors"}
    assert {option: value(command, option) for option in stated} == stated
    assert "--trust-remote-code" not in command
    assert "--enable-lora" not in command


def test_nothing_is_compiled_on_a_cpu_and_nobody_can_ask_for_it() -> None:
    assert "--enforce-eager" in line(Engine(Path("/model")))
    assert "--enforce-eager" in line(Engine(Path("/model"), enforce_eager=True), GPU)
    assert "--enforce-eager" not in line(Engine(Path("/model")), GPU)
    assert "--enforce-eager" not in line(Engine(Path("/model"), enforce_eager=False), GPU)
    with pytest.raises(SettingsError, match="not used on a CPU"):
        line(Engine(Path("/model"), enforce_eager=False))


def test_a_cpu_that_does_other_work_has_room_for_the_cache() -> None:
    assert value(line(Engine(Path("/model"))), "--kv-cache-memory-bytes") == str(CPU_KV_CACHE_BYTES)
    assert value(line(Engine(Path("/model"), kv_cache_memory_bytes=7), GPU), "--kv-cache-memory-bytes") == "7"
    assert "--kv-cache-memory-bytes" not in line(Engine(Path("/model")), GPU)


def test_adapters_are_served_under_their_names_with_room_for_the_largest_rank(tmp_path: Path) -> None:
    small = adapter(tmp_path / "small", r=4)
    large = adapter(tmp_path / "large", r=8, rank_pattern={"q_proj": 33})
    command = line(Engine(Path("/model"), lora_modules={"small": small, "large": large}))
    assert value(command, "--max-lora-rank") == "64"
    assert value(command, "--max-loras") == "2"
    at = command.index("--lora-modules")
    assert [json.loads(item) for item in command[at + 1 : at + 3]] == [
        {"name": "small", "path": str(small)},
        {"name": "large", "path": str(large)},
    ]
    both = Engine(Path("/model"), lora_modules={"small": small, "large": large}, max_loras=1, max_lora_rank=128)
    assert value(line(both), "--max-loras") == "1"
    assert value(line(both), "--max-lora-rank") == "128"


def test_adapters_that_cannot_be_served_are_named(tmp_path: Path) -> None:
    wide = adapter(tmp_path / "wide", r=600)
    with pytest.raises(AdapterError, match="does not fit") as raised:
        line(Engine(Path("/model"), lora_modules={"wide": wide}))
    assert raised.value.items == ("wide: rank 600",)
    fits_not = Engine(Path("/model"), lora_modules={"it": adapter(tmp_path / "it", r=32)}, max_lora_rank=16)
    with pytest.raises(AdapterError, match="does not fit"):
        line(fits_not)
    pickled = adapter(tmp_path / "pickled", r=8)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="no adapter that can be served"):
        line(Engine(Path("/model"), lora_modules={"pickled": pickled}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int8"},
        {"port": 70000},
        {"max_model_len": -1},
        {"max_lora_rank": 16},
        {"max_loras": 2, "max_lora_rank": 24},
        {"lora_modules": {"the-model": Path("/adapter")}},
        {"lora_modules": {"two words": Path("/adapter")}},
    ],
    ids=str,
)
def test_values_that_vllm_would_refuse_a_minute_later_are_refused_now(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="cannot be used"):
        line(replace(Engine(Path("/model")), **wrong))


@pytest.mark.parametrize(
    "option",
    [
        "--trust-remote-code", "--trust_remote_code", "--trust-rem", "--no-enforce-eager", "--model=/other",
        "--load-format=pt", "--config=more.yaml", "--hf-overrides.rope_theta=1", "--served-model-name", "--tokenizer",
        "--scheduler-cls", "--kv-transfer-config", "-sc", "-q", "--chat-template", "--trust-request-chat-template",
        "--enable-prompt-embeds", "--quantization", "--speculative-config", "--an-option-of-a-later-vllm", "--",
    ],
)  # fmt: skip
def test_options_that_would_serve_something_that_was_not_judged_are_refused(option: str) -> None:
    with pytest.raises(SettingsError, match=r"serving\.extra"):
        line(Engine(Path("/model"), extra=(option, "x")))


def test_other_options_of_vllm_reach_it() -> None:
    extra = ("--max-num-seqs", "4", "--no-enable-prefix-caching", "--tokenizer_mode=slow", "--seed", "-1")
    assert line(Engine(Path("/model"), extra=extra))[-6:] == list(extra)
