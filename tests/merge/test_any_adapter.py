"""Whatever PEFT can train and merge claims to take: the merged model computes what PEFT computes with the adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.manifest import verify
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.load import load_causal_lm

torch = pytest.importorskip("torch")

#: Of the largest logit, and absolute below 1: float32 sums in another order.
TOLERANCE = 1e-5
FLOAT32 = MergeSettings(merge_base="original", dtype="float32")

#: Architecture → its linear layers, its embedding and its head. GPT-2 stores by input (Conv1D) and has biases.
LAYERS = {
    "llama": ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj", "o_proj", "gate_proj"),
    "gpt2": ("c_attn", "c_fc", "c_proj"),
}
EMBEDDING = {"llama": "embed_tokens", "qwen2": "embed_tokens", "gpt2": "wte"}
NORM = {"llama": "norm", "qwen2": "norm", "gpt2": "ln_f"}
#: Those of its linear layers that have a bias: what ``lora_bias`` can be merged into.
WITH_BIAS = {"llama": set(), "qwen2": {"q_proj", "v_proj"}, "gpt2": set(LAYERS["gpt2"])}


def save_base(folder: Path, kind: str, *, width: int, layers: int, tied: bool, dtype: str, seed: int) -> Path:
    """A tiny random model; its biases are random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    common = {"vocab_size": 40 + width, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2}
    shape: dict[str, Any] = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 32}
    if kind != "gpt2":
        shape = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else parameter.data.add_(0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, seed: int, dtype: str = "float32", **config: Any) -> Path:
    """An adapter whose every trained value is random, saved by PEFT; AdaLoRA where ``init_r`` is given."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adaptive = "init_r" in config
    kind: Any = AdaLoraConfig if adaptive else LoraConfig
    plain = {"total_step": 10, "target_r": 1} if adaptive else {}
    model = get_peft_model(load_causal_lm(base), kind(task_type="CAUSAL_LM", **plain, **config))
    masks = {}
    for name, parameter in model.base_model.model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        elif parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        if "lora_E" in name:
            masks[name] = (torch.rand(config["init_r"]) < torch.rand(1)).tolist()
    if masks:
        next(iter(masks.values()))[0] = True  # an adapter of rank 0 throughout changes nothing, and is refused
        model.peft_config["default"].rank_pattern = masks
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    return folder


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.tensor([[3, 14, 15, 9, 26, 5, 3, 5]])).logits


def by_peft(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(load_causal_lm(base), str(adapter)))


def refuse_difference(ours: Any, theirs: Any) -> None:
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) <= TOLERANCE * scale


@st.composite
def any_adapter(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A base, and a configuration that PEFT takes for it."""
    kind = draw(st.sampled_from(sorted(LAYERS)))
    base = {
        "kind": kind,
        "width": draw(st.sampled_from([8, 16, 24])),
        "layers": draw(st.integers(1, 2)),
        "tied": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "bfloat16", "float16"])),
    }
    targets = draw(st.lists(st.sampled_from(LAYERS[kind]), min_size=1, unique=True))
    config: dict[str, Any] = {"lora_alpha": draw(st.integers(1, 24)), "fan_in_fan_out": kind == "gpt2"}
    if draw(st.integers(0, 3)) == 0:
        return base, {**config, "init_r": draw(st.integers(1, 6)), "target_modules": targets}
    ends = draw(st.sets(st.sampled_from([EMBEDDING[kind], "lm_head"])))
    patterns = st.dictionaries(st.sampled_from(targets), st.integers(1, 9))
    config |= {
        "r": draw(st.integers(1, 6)),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "rank_pattern": draw(patterns),
        "alpha_pattern": draw(patterns),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])),
        "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
    }
    if not config["use_dora"] and set(targets) <= WITH_BIAS[kind] and draw(st.booleans()):
        config |= {"lora_bias": True, "bias": "none"}  # PEFT takes it for neither DoRA nor embeddings
    if not config.get("lora_bias") and draw(st.booleans()):
        return base, {**config, "target_modules": [*targets, *sorted(ends)]}
    saved = ends | draw(st.sets(st.just(NORM[kind])))
    if NORM[kind] in saved:  # with trained biases PEFT saves this module's own under names that it cannot load
        config["bias"] = "none"
    return base, {**config, "target_modules": targets, "modules_to_save": sorted(saved)}


def merge_and_compare(drawn: tuple[dict[str, Any], dict[str, Any]], seed: int, place: Path) -> None:
    base, config = drawn
    event(f"{base['kind']}, {'AdaLoRA' if 'init_r' in config else 'DoRA' if config['use_dora'] else 'LoRA'}")
    folder = save_base(place / "base", seed=seed, **base)
    adapter = save_adapter(folder, place / "adapter", seed=seed, **config)
    run(FLOAT32, base_model=folder, adapter=adapter, output=place / "out")
    refuse_difference(logits(load_causal_lm(place / "out")), by_peft(folder, adapter))
    verify(place / "out", kind="merged")
    shutil.rmtree(place)  # a large search would fill the disk


@examples(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=any_adapter(), seed=st.integers(0, 2**31))
def test_the_merged_model_computes_what_peft_computes(
    drawn: tuple[dict[str, Any], dict[str, Any]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    merge_and_compare(drawn, seed, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
@examples(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=any_adapter(), seed=st.integers(0, 2**31))
def test_a_search_fifty_times_as_large_finds_no_adapter_that_merges_to_something_else(
    drawn: tuple[dict[str, Any], dict[str, Any]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    merge_and_compare(drawn, seed, tmp_path_factory.mktemp("any"))


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn"])
def test_a_weight_that_is_not_computed_in_float32_is_refused_by_name(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_base(tmp_path / "base", "llama", width=8, layers=1, tied=False, dtype="float32", seed=0)
    adapter = save_adapter(base, tmp_path / "adapter", seed=0, r=2, target_modules=["q_proj", "v_proj"])
    name, path = "model.layers.0.self_attn.q_proj.weight", base / "model.safetensors"
    held = load_file(path)
    save_file(held | {name: held[name].to(getattr(torch, dtype))}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError) as caught:
        run(FLOAT32, base_model=base, adapter=adapter, output=tmp_path / "out")
    assert [item.split(":")[0] for item in caught.value.items] == [name]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["adapter", "base"]
