"""A fleet file: what one vLLM would serve of it, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.manifest import input_digest

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in ``base``, and PEFT's own adapters of several ranks and kinds beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("fleet")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder / "base")  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "small": {"r": 4},
        "pattern": {"r": 4, "rank_pattern": {"q_proj": 24}},
        "rslora": {"r": 8, "use_rslora": True},
        "dora": {"r": 4, "use_dora": True},
    }
    for name, options in kinds.items():
        model = LlamaForCausalLM.from_pretrained(folder / "base")
        adapted = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
        )
        adapted.save_pretrained(folder / name)
    return folder


def planned(root: Path, text: str) -> Any:
    (root / "fleet.yaml").write_text(text, "utf-8")
    return RUNNER.invoke(app, ["fleet", "plan", str(root / "fleet.yaml"), "--json", "--check", "none"])


def test_prompts_that_are_missing_are_said_by_the_plan_as_by_the_server(root: Path) -> None:
    (root / "fleet.yaml").write_text("base: base\nadapters: {a: small}\n", "utf-8")
    result = RUNNER.invoke(app, ["fleet", "plan", str(root / "fleet.yaml")])
    assert (result.exit_code, "nothing to ask the adapter a" in result.stderr) == (2, True)


def test_a_base_as_a_hub_keeps_it_is_a_folder_of_links(root: Path) -> None:
    (root / "snapshot").mkdir()
    for path in (root / "base").iterdir():
        (root / "snapshot" / path.name).symlink_to(path)
    plan = json.loads(planned(root, "base: snapshot\nadapters: {a: small}\n").stdout)
    assert plan["base"] == input_digest(root / "base")


def test_room_is_for_the_largest_rank_and_each_adapter_has_the_name_of_its_content(root: Path) -> None:
    result = planned(root, "base: base\nadapters: {a: small, b: pattern, c: rslora, again: small}\n")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["max_loras"], plan["max_lora_rank"]) == (3, 32)
    assert plan["base"] == input_digest(root / "base")
    assert {each["alias"]: (each["adapter"], each["rank"]) for each in plan["adapters"]} == {
        "a": (input_digest(root / "small"), 8),
        "again": (input_digest(root / "small"), 8),
        "b": (input_digest(root / "pattern"), 32),
        "c": (input_digest(root / "rslora"), 8),
    }
    served = {each["alias"]: each["served"] for each in plan["adapters"]}
    assert served["a"] == served["again"]
    assert len(set(served.values())) == 3


def test_what_could_not_be_checked_is_said(root: Path) -> None:
    plan = json.loads(planned(root, "base: base\nadapters: {a: small}\n").stdout)
    assert any("no digest of it" in each for each in plan["adapters"][0]["unchecked"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: base\nadapters: {a: small, b: dora}\n", "dora"),
        ("base: base\nadapter: {a: small}\n", "adapters"),
        ("base: base\nadapters: {}\n", "no adapter"),
        ("base: base\nadapters: {A/b: small}\n", "A/b"),
        ("base: small\nadapters: {a: small}\n", "no config.json"),
        ("base: base\nadapters: {a: nowhere}\n", "nowhere"),
        ("- base\n", "not a mapping"),
    ],
)
def test_what_cannot_be_served_is_refused(root: Path, text: str, told: str) -> None:
    result = planned(root, text)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stdout == ""
