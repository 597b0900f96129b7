"""Merging AdaLoRA: irregular ranks, and ranks of zero, give the model that PEFT computes with the loaded adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import AdapterError
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.architecture import read_architecture
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.tensors.adapter import read_changes
from tunegate.tensors.shards import model_specs

torch = pytest.importorskip("torch")

#: Of the largest logit, and absolute below 1: float32 sums in another order, and these logits reach the tens.
TOLERANCE = 1e-5
INIT_R, ALPHA = 6, 12
PLAIN = MergeSettings(merge_base="original")
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.fixture(scope="module")
def ids(tiny_base: Path) -> Any:
    return torch.tensor([load_tokenizer(tiny_base)("Please tell me weather of Lima for 12 days.")["input_ids"]])


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids).logits


def peft_logits(base: Path, adapter: Path, ids: Any) -> Any:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(load_causal_lm(base), str(adapter)).eval(), ids)


def refuse_difference(ours: Any, theirs: Any) -> None:
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) <= TOLERANCE * scale


def peft_adapter(base: Path, folder: Path, *, pruned: bool = True, **config: Any) -> Path:
    """Random P, Λ and Q saved by PEFT, with each module's rank drawn between 0 and INIT_R."""
    from peft import AdaLoraConfig, get_peft_model

    plain = {"init_r": INIT_R, "target_r": 3, "lora_alpha": ALPHA, "total_step": 10, "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(load_causal_lm(base), AdaLoraConfig(target_modules="all-linear", **{**plain, **config}))
    kept = {}
    for place, (name, parameter) in enumerate(p for p in model.base_model.model.named_parameters() if "lora_" in p[0]):
        torch.nn.init.normal_(parameter, std=0.3)
        if "lora_E" in name:
            kept[name] = (torch.rand(INIT_R) < (place % 7) / 6).tolist()
    if pruned:
        first, *_ = kept
        kept[first] = [False] * INIT_R
        model.peft_config["default"].rank_pattern = kept
    model.save_pretrained(str(folder))
    return folder


def edit_config(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


def edit_tensors(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def test_what_was_trained_merges_to_what_peft_computes(
    trained_adalora: Path, tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    run(MergeSettings(), base_model=tiny_base, adapter=trained_adalora, output=tmp_path / "out")
    ours = logits(load_causal_lm(tmp_path / "out"), ids)
    refuse_difference(ours, peft_logits(tiny_base, trained_adalora, ids))
    assert (ours - logits(load_causal_lm(tiny_base), ids)).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize(
    "config",
    [{}, {"pruned": False}, {"use_rslora": True}, {"lora_dropout": 0.3}],
    ids=["pruned", "whole", "rs", "drop"],
)
def test_every_rank_merges_as_peft_computes_it(
    config: dict[str, Any], tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter", **config)
    run(PLAIN, base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    ours, expected = logits(load_causal_lm(tmp_path / "out"), ids), peft_logits(tiny_base, adapter, ids)
    refuse_difference(ours, expected)
    assert (expected - logits(load_causal_lm(tiny_base), ids)).abs().max() > 1000 * TOLERANCE


def test_weights_are_the_formula_scaled_by_the_rank_at_the_start(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    run(PLAIN, base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    held, before = load_file(adapter / "adapter_model.safetensors"), load_file(tiny_base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    ranks = set()
    for name in (name for name in held if name.endswith("lora_E")):
        weight = name.removeprefix("base_model.model.").replace("lora_E", "weight")
        a, e, b = (held[name.replace("lora_E", f"lora_{factor}")].double() for factor in "AEB")
        change = b @ torch.diag(e.flatten()) @ a * ALPHA / (INIT_R + 1e-5)
        assert torch.allclose(after[weight].double(), before[weight].double() + change, atol=1e-5), name
        ranks.add(len(e))
    assert {0, INIT_R} < ranks


def test_modules_of_rank_zero_keep_the_weights_of_the_base_and_are_reported(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    run(PLAIN, base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "merge.json").read_text("utf-8"))["modules"]
    empty = [module for module in report if module["rank"] == 0]
    assert len(report) == 14 and empty
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "out"))
    for module in empty:
        assert (module["changed"], module["relative_change"]) == (0, 0)
        assert torch.equal(before[module["weight"]], after[module["weight"]])


def test_tensors_of_rank_zero_may_be_left_out_of_the_file(tiny_base: Path, ids: Any, tmp_path: Path) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    expected = peft_logits(tiny_base, adapter, ids)
    edit_tensors(adapter, lambda t: {name: tensor for name, tensor in t.items() if tensor.numel()})
    run(PLAIN, base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    refuse_difference(logits(load_causal_lm(tmp_path / "out"), ids), expected)


def test_every_module_is_found_with_its_own_rank(trained_adalora: Path, tiny_base: Path) -> None:
    ranks = {row["module"]: row["rank"] for row in json.loads((trained_adalora / "training.json").read_text())["ranks"]}
    pairs = read_changes(trained_adalora, model_specs(tiny_base), lambda: read_architecture(tiny_base)).pairs
    assert {pair.module: pair.rank for pair in pairs.values()} == ranks


EMPTY = "model.layers.0.self_attn.q_proj.lora_E"


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda p: edit_config(p, lambda c: c.pop("init_r")), "init_r"),
        (lambda p: edit_config(p, lambda c: c.update(lora_alpha=0)), "lora_alpha"),
        (lambda p: edit_config(p, lambda c: c.update(init_r=INIT_R + 1)), "not 7 times"),
        (lambda p: edit_config(p, lambda c: c["rank_pattern"].update({EMPTY: [0] * INIT_R})), "times true or false"),
        (lambda p: edit_config(p, lambda c: c["rank_pattern"].update({EMPTY: [True] * INIT_R})), "shapes differ"),
        (lambda p: edit_config(p, lambda c: c["rank_pattern"].update({"other.lora_E": [True] * INIT_R})), "unused"),
        (lambda p: edit_config(p, lambda c: c.update(rank_pattern=None)), "shapes differ"),
        (lambda p: edit_config(p, lambda c: c.update(modules_to_save=["lm_head"])), "modules_to_save"),
        (lambda p: edit_config(p, lambda c: c.update(peft_type="LORA")), "init_r"),
        (lambda p: edit_tensors(p, lambda t: {k: v for k, v in t.items() if k != FIRST + "E"}), "unused"),
        (lambda p: edit_tensors(p, lambda t: {**t, FIRST + "C": torch.ones(1)}), "unused"),
        (lambda p: edit_tensors(p, lambda t: t | {k: v[:, :0] for k, v in t.items() if k[-1] == "E"}), "shapes differ"),
        (lambda p: edit_tensors(p, lambda t: t | {k: v * 0 for k, v in t.items() if k.endswith("E")}), "0 changed"),
    ],
    ids=["no rank at the start", "no scale", "masks of another length", "numbers for a mask", "more rank than tensors",
         "a rank without tensors", "no ranks", "modules_to_save", "said to be LoRA", "no singular values",
         "stray factor", "singular values of another shape", "changes nothing"],
)  # fmt: skip
def test_what_cannot_be_merged_exactly_is_refused_and_nothing_is_written(
    damage: Callable[[Path], object], seen: str, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(AdapterError) as caught:
        run(PLAIN, base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    assert seen in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
