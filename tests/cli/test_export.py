"""``tunegate export`` and ``tunegate lint --adapter``: one document for scripts, and options that are never ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate_pipelines import form

torch = pytest.importorskip("torch")

RECIPE = str(Path(form.__file__).parent / "recipes" / "demo.yaml")
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA and an AdaLoRA adapter with random factors, as PEFT saves them."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    from tunegate.models.load import load_causal_lm

    place = tmp_path_factory.mktemp("adapters")
    configs = {
        "lora": LoraConfig(r=8, target_modules="all-linear"),
        "adalora": AdaLoraConfig(init_r=8, total_step=10, target_modules="all-linear"),
    }
    for name, config in configs.items():
        model = get_peft_model(load_causal_lm(tiny_base), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(place / name))
    return {name: place / name for name in configs}


def test_an_adapter_that_vllm_refuses_is_exported_and_then_loads(
    adapters: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    where = ["--base", str(tiny_base)]
    raw = RUNNER.invoke(app, ["lint", "--adapter", str(adapters["adalora"]), *where, "--json"])
    assert (raw.exit_code, json.loads(raw.stdout)["loads"]) == (2, False)
    assert "tunegate export" in raw.stderr
    made = RUNNER.invoke(app, ["export", str(adapters["adalora"]), *where, "--output", str(tmp_path / "out"), "--json"])
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["output"], told["rank"], told["energy"]) == (str(tmp_path / "out"), 8, 1.0)
    linted = RUNNER.invoke(app, ["lint", "--adapter", str(tmp_path / "out"), *where, "--json"])
    said = json.loads(linted.stdout)
    assert (linted.exit_code, said["loads"], said["findings"]) == (0, True, [])
    assert [unchecked["rule"] for unchecked in said["unchecked"]] == ["adapter-base"]


def test_people_read_with_which_room_vllm_loads_it(adapters: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    made = RUNNER.invoke(app, ["export", str(adapters["lora"]), "--base", str(tiny_base), "--output", out])
    assert made.exit_code == 0, made.output
    assert "serve it with --max-lora-rank 8" in " ".join(made.stdout.split())
    linted = RUNNER.invoke(app, ["lint", "--adapter", out, "--max-lora-rank", "8"])
    assert linted.exit_code == 0, linted.output
    assert "loads this adapter with --max-lora-rank 8" in linted.stdout
    assert "not checked: adapter-shapes (no base was given)" in linted.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither a recipe nor an adapter"),
        ([RECIPE, "--adapter", "a"], "a recipe and an adapter"),
        ([RECIPE, "--base", "b"], "takes no --base"),
        ([RECIPE, "--max-lora-rank", "0"], "takes no --max-lora-rank"),
        (["--adapter", "a", "--set", "r=8"], "takes no --set"),
        (["--adapter", "absent"], "no adapter folder absent"),
    ],
)
def test_what_a_lint_would_not_look_at_is_refused(arguments: list[str], said: str) -> None:
    result = RUNNER.invoke(app, ["lint", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "to do:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rank", "20"], "choose 32"),
        (["--rank", "-1"], "export.rank is out of range"),
        (["--dtype", "float8"], "export.dtype has an unknown value"),
        (["--reduce-rank-to", "1"], "give the data set"),
    ],
)
def test_a_rank_that_cannot_be_had_exits_2_and_nothing_is_written(
    arguments: list[str], said: str, adapters: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    place = ["--base", str(tiny_base), "--output", str(tmp_path / "out")]
    result = RUNNER.invoke(app, ["export", str(adapters["lora"]), *place, *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []
