"""Merging: the merged model is the adapter on its base, and an adapter that does not fit is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import AdapterError, ArtifactError, InputError, ModelError
from tunegate.contracts.files import sha256_file
from tunegate.contracts.manifest import input_digest, verify
from tunegate.merge import weights
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.companions import tokenizer_digests
from tunegate.models.files import tokenizer_files
from tunegate.models.four_bit import four_bit, four_bit_document
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4
GENERATION = "generation_config.json"


@pytest.fixture(scope="module")
def ids(tiny_base: Path) -> Any:
    text = "Please tell me weather of Lima for 12 days. Answer with one JSON call."
    return torch.tensor([load_tokenizer(tiny_base)(text)["input_ids"]])


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids).logits


def peft_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """An adapter with random A and B, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    plain: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(load_causal_lm(base), LoraConfig(**{**plain, **config}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else parameter.data.mul_(1.3)
    model.save_pretrained(str(folder))
    return folder


def peft_logits(base_model: Any, adapter: Path, ids: Any) -> Any:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(base_model, str(adapter)).eval(), ids)


def test_lora_merged_equals_pefts_adapter_on_base(
    trained: dict[str, Path], tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    run(MergeSettings(), base_model=tiny_base, adapter=trained["lora"], output=tmp_path / "out")
    expected = peft_logits(load_causal_lm(tiny_base), trained["lora"], ids)
    assert (logits(load_causal_lm(tmp_path / "out"), ids) - expected).abs().max() <= TOLERANCE


def test_qlora_merged_into_its_dequantized_base_equals_pefts_adapter_on_the_nf4_base(
    trained: dict[str, Path], merged: Path, tiny_base: Path, ids: Any
) -> None:
    four_bit_base = load_base(tiny_base, TrainSettings(method="qlora"))
    expected = peft_logits(four_bit_base, trained["qlora"], ids)
    assert (logits(load_causal_lm(merged), ids) - expected).abs().max() <= TOLERANCE


def test_qlora_merged_into_the_original_base_equals_pefts_adapter_on_the_original(
    trained: dict[str, Path], merged: Path, tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=trained["qlora"], output=tmp_path / "out")
    ours = logits(load_causal_lm(tmp_path / "out"), ids)
    assert (ours - peft_logits(load_causal_lm(tiny_base), trained["qlora"], ids)).abs().max() <= TOLERANCE
    assert (ours - logits(load_causal_lm(merged), ids)).abs().max() > 10 * TOLERANCE  # the two bases are not the same


@pytest.mark.parametrize("merge_base", ["dequantized", "original"])
def test_dora_trained_on_a_4_bit_base_merges_with_the_lengths_of_the_weights_it_is_merged_into(
    merge_base: str, tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    quantized = load_base(tiny_base, TrainSettings(method="qlora"))
    adapter = peft_adapter(tiny_base, tmp_path / "adapter", use_dora=True)
    training = {
        "method": "qlora",
        "base_digest": input_digest(tiny_base),
        "four_bit": four_bit_document(four_bit(quantized)),
        "companions": tokenizer_digests(tiny_base) | {GENERATION: sha256_file(tiny_base / GENERATION)},
    }
    (adapter / "training.json").write_text(json.dumps(training), "utf-8")
    for file in tokenizer_files(tiny_base):
        shutil.copyfile(file, adapter / file.name)
    run(MergeSettings(merge_base=merge_base), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    expected = peft_logits(quantized if merge_base == "dequantized" else load_causal_lm(tiny_base), adapter, ids)
    assert (logits(load_causal_lm(tmp_path / "out"), ids) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers.1.mlp.down_proj": 7}, "alpha_pattern": {"k_proj": 1}},
        {"target_modules": ["q_proj"]},
    ],
    ids=["rslora", "patterns", "one module"],
)
def test_every_form_of_plain_lora_merges_as_peft_computes_it(
    config: dict[str, Any], tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter", **config)
    run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    expected = peft_logits(load_causal_lm(tiny_base), adapter, ids)
    assert (logits(load_causal_lm(tmp_path / "out"), ids) - expected).abs().max() <= TOLERANCE


def test_several_shards_and_small_row_blocks_give_the_same_weights(
    tiny_base: Path, ids: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = tmp_path / "sharded"
    load_causal_lm(tiny_base).save_pretrained(str(sharded), max_shard_size="150KB")
    for file in tokenizer_files(tiny_base):
        shutil.copyfile(file, sharded / file.name)
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1000)
    run(MergeSettings(merge_base="original"), base_model=sharded, adapter=adapter, output=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    expected = peft_logits(load_causal_lm(tiny_base), adapter, ids)
    assert (logits(load_causal_lm(tmp_path / "out"), ids) - expected).abs().max() <= TOLERANCE


def test_the_sum_is_made_in_float32_and_cast_once(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = tmp_path / "base"
    load_causal_lm(tiny_base, dtype="bfloat16").save_pretrained(str(base))
    for file in tokenizer_files(tiny_base):
        shutil.copyfile(file, base / file.name)
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    run(MergeSettings(merge_base="original"), base_model=base, adapter=adapter, output=tmp_path / "out")
    lora, before = load_file(adapter / "adapter_model.safetensors"), load_file(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
    exact = (before[f"{name}.weight"].double() + 2.0 * b @ a).to(torch.bfloat16)
    assert after[f"{name}.weight"].dtype == torch.bfloat16
    assert (after[f"{name}.weight"] == exact).double().mean() > 0.999  # float32's own rounding may flip a tie


def test_only_four_bit_modules_are_round_tripped(trained: dict[str, Path], merged: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file

    before, after = load_file(tiny_base / "model.safetensors"), load_file(merged / "model.safetensors")
    four_bit = json.loads((trained["qlora"] / "training.json").read_text("utf-8"))["four_bit"]["modules"]
    untouched = [name for name in before if name.removesuffix(".weight") not in four_bit]
    assert "model.embed_tokens.weight" in untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_tied_embeddings_tokenizer_template_and_generation_settings_survive(merged: Path, tiny_base: Path) -> None:
    model = load_causal_lm(merged)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for file in [*tokenizer_files(tiny_base), tiny_base / "generation_config.json"]:
        assert sha256_file(merged / file.name) == sha256_file(file)


def test_the_artifact_verifies_and_names_what_it_came_from(
    merged: Path, trained: dict[str, Path], tiny_base: Path
) -> None:
    manifest = verify(merged, kind="merged")
    assert manifest.parents["adapter"] == verify(trained["qlora"]).content_digest
    assert manifest.parents["base"] == verify(trained["qlora"]).parents["base"]


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_tensors(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda p: edit_config(p, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda p: edit_config(p, use_dora=True), "only lora_A.weight, lora_B.weight"),
        (lambda p: edit_config(p, peft_type="LOHA"), "LOHA"),
        (lambda p: edit_config(p, init_lora_weights="pissa"), "pissa"),
        (lambda p: edit_config(p, r=5), "shapes differ"),
        (lambda p: edit_config(p, some_future_option={"a": 1}), "some_future_option"),
        (lambda p: (p / "adapter_config.json").write_text("[]"), "a list"),
        (lambda p: edit_tensors(p, lambda t: {k: v[:0] if "lora_A" in k else v for k, v in t.items()}), "unused"),
        (lambda p: edit_tensors(p, lambda t: {k.replace("layers.0", "layers.7"): v for k, v in t.items()}), "unused"),
        (lambda p: edit_tensors(p, lambda t: {**t, "stray": torch.zeros(1)}), "unused"),
        (lambda p: edit_tensors(p, lambda t: {k: v for k, v in t.items() if k != FIRST + "B.weight"}), "unused"),
        (lambda p: edit_tensors(p, lambda t: {k: v * (0 if "lora_B" in k else 1) for k, v in t.items()}), "0 changed"),
        (lambda p: edit_tensors(p, lambda t: {k: v * float("nan") for k, v in t.items()}), "no number"),
        (lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"), "adapter_model.bin"),
    ],
    ids=["modules_to_save", "dora", "loha", "pissa", "rank",
         "unknown option", "no object", "rank zero", "unknown module", "stray key", "half a pair",
         "changes nothing", "not finite", "pickle"],
)  # fmt: skip
def test_an_adapter_that_cannot_be_merged_exactly_is_refused_and_nothing_is_written(
    damage: Callable[[Path], object], seen: str, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(AdapterError) as caught:
        run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    assert seen in str(caught.value)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_for_another_hidden_size_is_refused(make_base: Any, tiny_base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(make_base(hidden=32), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="does not fit this base"):
        run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")


def add_a_token(document: dict[str, Any]) -> None:
    document["added_tokens"].append({**document["added_tokens"][-1], "id": 9999, "content": "<|tool|>"})


def swap_two_tokens(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize("change", [add_a_token, swap_two_tokens])
def test_an_adapter_with_another_vocabulary_is_refused_even_of_the_same_size(
    change: Callable[[dict[str, Any]], None], tiny_base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    document = json.loads((tiny_base / "tokenizer.json").read_text("utf-8"))
    change(document)
    (adapter / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(AdapterError, match="vocabulary"):
        run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")


def test_an_adapter_trained_on_other_bytes_is_refused(trained: dict[str, Path], make_base: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="trained on another base"):
        run(MergeSettings(), base_model=make_base(seed=5), adapter=trained["qlora"], output=tmp_path / "out")


def test_a_foreign_adapter_never_gets_a_guessed_base(tiny_base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="held in training") as caught:
        run(MergeSettings(), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    assert "merge_base: original" in caught.value.remedy


def test_a_base_without_safetensors_is_refused(tiny_base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors") as caught:
        run(MergeSettings(), base_model=base, adapter=trained["qlora"], output=tmp_path / "out")
    assert "pytorch_model.bin" in caught.value.seen


def test_an_adapter_changed_by_one_byte_after_training_is_refused(
    trained: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained["qlora"], tmp_path / "adapter")
    data = bytearray((copy / "adapter_model.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "adapter_model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtifactError) as caught:
        run(MergeSettings(), base_model=tiny_base, adapter=copy, output=tmp_path / "out")
    assert caught.value.items == ("adapter_model.safetensors: changed",)


def test_the_same_merge_again_is_kept_and_a_different_one_refused(
    trained: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(MergeSettings(), base_model=tiny_base, adapter=trained["qlora"], output=out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run(MergeSettings(), base_model=tiny_base, adapter=trained["qlora"], output=out) == first
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="other inputs or settings"):
        run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=trained["qlora"], output=out)
