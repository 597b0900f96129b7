"""Export: plain LoRA of one rank that answers as the original does, or a refusal; a cut says what it loses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tunegate.contracts.errors import AdapterError, InputError, SettingsError
from tunegate.contracts.files import read_json_lines, sha256_file
from tunegate.contracts.manifest import input_digest, verify
from tunegate.export.settings import ExportSettings
from tunegate.export.step import run
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run as merge
from tunegate.models.chat import render
from tunegate.models.files import tokenizer_files
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.preflight.vllm_adapter import lint_adapter

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
INIT_R = 12
WEIGHTS = "adapter_model.safetensors"
PATTERNS = ("q_proj", "mlp.down_proj", r"layers.1.self_attn.v_proj", "up_proj")


@pytest.fixture(scope="module")
def ids(tiny_base: Path) -> Any:
    return torch.tensor([load_tokenizer(tiny_base)("Please tell me weather of Lima for 12 days.")["input_ids"]])


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids).logits


def peft_logits(base: Path, adapter: Path, ids: Any) -> Any:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(load_causal_lm(base), str(adapter)).eval(), ids)


def peft_adapter(base: Path, folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """An adapter with random factors, saved by PEFT: LoRA, or AdaLoRA where ``init_r`` is given."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adaptive = "init_r" in config
    plain: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    plain |= {"total_step": 10, "target_r": 3} if adaptive else {"r": 4, "lora_alpha": 8}
    kept = config.pop("kept", {})
    model = get_peft_model(load_causal_lm(base), (AdaLoraConfig if adaptive else LoraConfig)(**{**plain, **config}))
    masks = {}
    for name, parameter in model.base_model.model.named_parameters():
        if "lora_" in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
        if "lora_E" in name:
            masks[name] = (torch.rand(config["init_r"]) < kept.get(len(masks), 0.5)).tolist()
    if masks:
        model.peft_config["default"].rank_pattern = masks
    model.save_pretrained(str(folder))
    return folder


def exported(base: Path, adapter: Path, output: Path, **settings: Any) -> Any:
    """The report of an export."""
    run(ExportSettings(**settings), base_model=base, adapter=adapter, output=output)
    return json.loads((output / "export.json").read_text("utf-8"))


def config_of(adapter: Path) -> Any:
    return json.loads((adapter / "adapter_config.json").read_text("utf-8"))


def edit_config(adapter: Path, **changes: Any) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(config_of(adapter) | changes), "utf-8")


def edit_tensors(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    changed = change(load_file(adapter / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, adapter / WEIGHTS)


lora = st.fixed_dictionaries(
    {
        "r": st.integers(1, 12),
        "lora_alpha": st.integers(1, 40),
        "use_rslora": st.booleans(),
        "rank_pattern": st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 20)),
        "alpha_pattern": st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 40)),
        "target_modules": st.sampled_from(["all-linear", ["q_proj", "down_proj"], r".*layers.1.*proj"]),
    }
)
adalora = st.fixed_dictionaries(
    {
        "init_r": st.just(INIT_R),
        "lora_alpha": st.integers(1, 40),
        "kept": st.dictionaries(st.integers(0, 13), st.sampled_from([0.0, 0.2, 1.0])),
    }
)


@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=st.one_of(lora, adalora), seed=st.integers(0, 2**31))
def test_whatever_the_ranks_and_scales_peft_computes_the_same_with_the_export(
    config: dict[str, Any], seed: int, tiny_base: Path, ids: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("any")
    adapter = peft_adapter(tiny_base, place / "adapter", seed=seed, **config)
    exported(tiny_base, adapter, place / "out")
    expected = peft_logits(tiny_base, adapter, ids)
    scale = max(1.0, float(expected.abs().max()))
    assert (peft_logits(tiny_base, place / "out", ids) - expected).abs().max() <= TOLERANCE * scale
    assert lint_adapter(place / "out", base=tiny_base, max_lora_rank=32).loads


def test_what_adalora_trained_is_exported_exactly_and_vllm_would_load_it(
    trained_adalora: Path, tiny_base: Path, ids: Any, tmp_path: Path
) -> None:
    assert not lint_adapter(trained_adalora, base=tiny_base).loads
    report = exported(tiny_base, trained_adalora, tmp_path / "out")
    ranks = {row["module"]: row["rank"] for row in json.loads((trained_adalora / "training.json").read_text())["ranks"]}
    assert {module["module"]: module["rank"] for module in report["modules"]} == ranks
    assert (report["rank"], {module["energy"] for module in report["modules"]}) == (8, {1.0})
    expected = peft_logits(tiny_base, trained_adalora, ids)
    assert (peft_logits(tiny_base, tmp_path / "out", ids) - expected).abs().max() <= TOLERANCE
    assert (expected - logits(load_causal_lm(tiny_base), ids)).abs().max() > 1000 * TOLERANCE
    verdict = lint_adapter(tmp_path / "out", base=tiny_base)
    assert (verdict.loads, verdict.linted.findings, verdict.linted.unchecked) == (True, (), ())


@pytest.mark.parametrize("config", [{"rank_pattern": {"c_attn": 7}}, {"init_r": INIT_R}], ids=["lora", "adalora"])
def test_an_adapter_on_gpt2_whose_weights_are_stored_by_input_is_exported_exactly(
    config: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 50}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_fc", "c_proj"]  # attn.c_proj is square: no shape says how it is stored
    adapter = peft_adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=targets, fan_in_fan_out=True, **config
    )
    exported(tmp_path / "base", adapter, tmp_path / "out")
    tokens = torch.tensor([[3, 14, 15, 9, 26, 5]])
    expected = peft_logits(tmp_path / "base", adapter, tokens)
    assert (peft_logits(tmp_path / "base", tmp_path / "out", tokens) - expected).abs().max() <= TOLERANCE
    assert (expected - logits(load_causal_lm(tmp_path / "base"), tokens)).abs().max() > 100 * TOLERANCE


def test_a_module_without_a_rank_becomes_zeros_of_the_common_rank(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapter = peft_adapter(tiny_base, tmp_path / "adapter", init_r=INIT_R, lora_alpha=8, kept={0: 0.0, 1: 1.0})
    report = exported(tiny_base, adapter, tmp_path / "out")
    empty = [module["module"] for module in report["modules"] if module["rank"] == 0]
    assert empty and report["largest_rank"] == INIT_R
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.shape[0 if "lora_A" in name else 1] for name, tensor in tensors.items()} == {16}
    for module in empty:
        assert not tensors[f"base_model.model.{module}.lora_A.weight"].any()
        assert not tensors[f"base_model.model.{module}.lora_B.weight"].any()


def test_the_configuration_says_one_rank_that_scales_by_one_and_names_what_is_adapted(
    tiny_base: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel

    adapter = peft_adapter(
        tiny_base, tmp_path / "adapter", rank_pattern={"q_proj": 9}, use_rslora=True,
        target_modules=["q_proj", "layers.0.mlp.up_proj"],
    )  # fmt: skip
    exported(tiny_base, adapter, tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_rslora"]) == ("LORA", 16, 16, False)
    assert config["target_modules"] == ["q_proj", "model.layers.0.mlp.up_proj"]
    assert not {"rank_pattern", "alpha_pattern"} & config.keys()
    assert isinstance(LoraConfig.from_pretrained(str(tmp_path / "out")), LoraConfig)
    loaded = PeftModel.from_pretrained(load_causal_lm(tiny_base), str(tmp_path / "out"))
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 3


def test_the_same_rank_can_be_asked_for_every_adapter_of_a_fleet(tiny_base: Path, ids: Any, tmp_path: Path) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    assert exported(tiny_base, adapter, tmp_path / "out", rank=64)["rank"] == 64
    expected = peft_logits(tiny_base, adapter, ids)
    assert (peft_logits(tiny_base, tmp_path / "out", ids) - expected).abs().max() <= TOLERANCE


def test_a_rank_that_is_too_small_is_refused_with_the_smallest_that_fits(tiny_base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(tiny_base, tmp_path / "adapter", rank_pattern={"q_proj": 17})
    with pytest.raises(AdapterError) as caught:
        exported(tiny_base, adapter, tmp_path / "out", rank=16)
    assert caught.value.expected == "rank 32, the smallest that fits"
    assert caught.value.items == tuple(f"model.layers.{n}.self_attn.q_proj: rank 17" for n in (0, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_smaller_dtype_is_written_when_it_is_asked_for(tiny_base: Path, ids: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapter = peft_adapter(tiny_base, tmp_path / "adapter")
    exported(tiny_base, adapter, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}


def test_tokenizer_and_the_record_of_training_go_along_byte_for_byte(
    trained_adalora: Path, tiny_base: Path, tmp_path: Path
) -> None:
    report = exported(tiny_base, trained_adalora, tmp_path / "out")
    files = [*tokenizer_files(tiny_base), trained_adalora / "training.json"]
    assert report["companions"] == {file.name: sha256_file(file) for file in files}
    assert all(sha256_file(tmp_path / "out" / file.name) == sha256_file(file) for file in files)


def test_an_export_merges_to_the_same_weights_as_its_adapter(
    trained_adalora: Path, tiny_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    exported(tiny_base, trained_adalora, tmp_path / "out")
    for name, adapter in (("ours", tmp_path / "out"), ("theirs", trained_adalora)):
        merge(MergeSettings(), base_model=tiny_base, adapter=adapter, output=tmp_path / name)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_the_artifact_verifies_names_its_parents_and_is_kept(
    trained_adalora: Path, tiny_base: Path, tmp_path: Path
) -> None:
    first = run(ExportSettings(), base_model=tiny_base, adapter=trained_adalora, output=tmp_path / "out")
    assert first.parents["adapter"] == verify(trained_adalora).content_digest
    written = (tmp_path / "out" / WEIGHTS).stat().st_mtime_ns
    again = run(ExportSettings(), base_model=tiny_base, adapter=trained_adalora, output=tmp_path / "out")
    assert (verify(tmp_path / "out", kind="exported"), again) == (first, first)
    assert (tmp_path / "out" / WEIGHTS).stat().st_mtime_ns == written
    with pytest.raises(InputError, match="other inputs or settings"):
        run(ExportSettings(rank=64), base_model=tiny_base, adapter=trained_adalora, output=tmp_path / "out")


def plus(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {**tensors, name: torch.ones(3)}


@pytest.mark.parametrize(
    ("config", "damage", "seen", "to_do"),
    [
        ({"use_dora": True}, None, "use_dora", "merge instead"),
        ({"bias": "lora_only"}, None, "bias: lora_only", "merge instead"),
        ({"lora_bias": True}, None, "lora_bias", "merge instead"),
        ({"modules_to_save": ["lm_head"]}, None, "modules_to_save", "merge instead"),
        ({}, lambda p: edit_config(p, trainable_token_indices={"embed_tokens": [1]}), "token_indices", "merge instead"),
        ({}, lambda p: edit_config(p, peft_type="LOHA"), "LOHA", "without these"),
        ({}, lambda p: edit_config(p, init_lora_weights="pissa"), "pissa", "without these"),
        ({}, lambda p: edit_tensors(p, lambda t: plus(t, "stray")), "unused", "base"),
        ({}, lambda p: edit_tensors(p, lambda t: {k: v * float("inf") for k, v in t.items()}), "no number", "float32"),
        ({}, lambda p: edit_tensors(p, lambda t: {k: v * ("A" in k) for k, v in t.items()}), "of zeros", "B = 0"),
        ({}, lambda p: (p / WEIGHTS).rename(p / "adapter_model.bin"), "adapter_model.bin", "safe_serialization"),
        ({}, lambda p: shutil.rmtree(p), "no such folder", "run the step"),
    ],
    ids=["dora", "bias", "lora bias", "modules_to_save", "tokens", "loha", "pissa", "stray", "not finite",
         "changes nothing", "pickle", "absent"],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_with_what_to_do_and_nothing_is_written(
    config: dict[str, Any], damage: Callable[[Path], object] | None, seen: str, to_do: str,
    make_base: Any, tiny_base: Path, tmp_path: Path,
) -> None:  # fmt: skip
    base = make_base(tied=False) if "modules_to_save" in config else tiny_base
    adapter = peft_adapter(base, tmp_path / "adapter", **config)
    if damage:
        damage(adapter)
    with pytest.raises(InputError) as caught:
        exported(base, adapter, tmp_path / "out")
    assert seen in caught.value.seen
    assert to_do in caught.value.remedy
    assert not list(tmp_path.glob("out*"))


def test_a_fully_tuned_model_is_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(tiny_base, tmp_path / "tuned")
    training = {"method": "full", "base_digest": input_digest(tiny_base), "four_bit": None}
    (tuned / "training.json").write_text(json.dumps(training))
    with pytest.raises(AdapterError, match="fully tuned"):
        exported(tiny_base, tuned, tmp_path / "out")


def test_another_base_is_refused(trained_adalora: Path, make_base: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="trained on another base"):
        exported(make_base(seed=5), trained_adalora, tmp_path / "out")


@pytest.mark.parametrize(
    ("asked", "rows", "seen"),
    [
        ({"reduce_rank_to": 1}, False, "reduce_rank_to 1 and no data set"),
        ({}, True, "reduce_rank_to 0 and the data set"),
        ({"reduce_rank_to": 1, "rank": 8}, True, "rank 8 and reduce_rank_to 1"),
        ({"reduce_rank_to": 8}, True, "the adapter's largest rank is 8"),
        ({"reduce_rank_to": 3}, True, "reduce_rank_to 3"),
        ({"rank": 20}, False, "rank 20"),
    ],
)
def test_a_reduction_that_could_not_be_judged_or_served_is_refused(
    asked: dict[str, int], rows: bool, seen: str, tiny_base: Path, tiny_dataset: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    adapter = peft_adapter(tiny_base, tmp_path / "adapter", r=8)
    with pytest.raises(SettingsError) as caught:
        run(
            ExportSettings(**asked), base_model=tiny_base, adapter=adapter, output=tmp_path / "out",
            dataset=tiny_dataset if rows else None,
        )  # fmt: skip
    assert seen in caught.value.seen
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.fixture(scope="module")
def cut(tiny_base: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An AdaLoRA adapter, and its export cut to rank 1."""
    place = tmp_path_factory.mktemp("cut")
    adapter = peft_adapter(tiny_base, place / "adapter", init_r=6, lora_alpha=12, kept={0: 1.0, 1: 0.0})
    settings = ExportSettings(reduce_rank_to=1)
    run(settings, base_model=tiny_base, adapter=adapter, output=place / "out", dataset=tiny_dataset)
    return adapter, place / "out"


def test_a_cut_says_of_every_module_which_share_of_its_energy_is_kept(cut: tuple[Path, Path]) -> None:
    import numpy as np
    from safetensors.torch import load_file

    adapter, out = cut
    held, written = load_file(adapter / WEIGHTS), load_file(out / WEIGHTS)
    squares = kept = 0.0
    report = json.loads((out / "export.json").read_text("utf-8"))
    for module in report["modules"]:
        name = f"base_model.model.{module['module']}.lora_"
        a, e, b = (held.get(name + factor, torch.zeros(0, 0)).double().numpy() for factor in "AEB")
        update = b @ np.diag(e.flatten()) @ a * 12 / (6 + 1e-5) if a.size else np.zeros((1, 1))
        values = np.linalg.svd(update, compute_uv=False) ** 2
        share = values[0] / values.sum() if values.sum() else 1.0
        assert module["energy"] == pytest.approx(share, abs=1e-6)
        assert module["norm"] == pytest.approx(np.linalg.norm(update), abs=1e-5)
        small = (written[name + "B.weight"] @ written[name + "A.weight"]).double().numpy()
        assert np.linalg.norm(update - small) ** 2 == pytest.approx(values[1:].sum(), abs=1e-5)
        squares, kept = squares + values.sum(), kept + values[0]
    assert 0 < kept / squares < 1
    assert json.loads((out / "summary.json").read_text())["energy"] == pytest.approx(kept / squares, abs=1e-6)


def test_a_cut_says_the_kl_that_peft_gives_between_the_original_adapter_and_the_cut_one(
    cut: tuple[Path, Path], tiny_base: Path, tiny_dataset: Path
) -> None:
    from peft import PeftModel

    adapter, out = cut
    tokenizer = load_tokenizer(tiny_base)
    models = [PeftModel.from_pretrained(load_causal_lm(tiny_base), str(folder)).eval() for folder in (adapter, out)]
    divergences, same = [], []
    rows = read_json_lines(tiny_dataset / "validation.jsonl")
    for row in rows:
        shown = render(tokenizer, row["prompt"], row["completion"])
        whole = torch.tensor([[*shown.prompt_ids, *shown.completion_ids]])
        first = len(shown.prompt_ids) - 1
        p, q = (torch.distributions.Categorical(logits=logits(m, whole)[0, first:-1].double()) for m in models)
        divergences.append(torch.distributions.kl_divergence(p, q))
        same.append(p.probs.argmax(-1) == q.probs.argmax(-1))
    divergence = torch.cat(divergences)
    loss = json.loads((out / "export.json").read_text("utf-8"))["loss"]
    assert (loss["rows"], loss["tokens"]) == (len(rows), len(divergence))
    assert loss["kl_mean"] == pytest.approx(float(divergence.mean()), rel=1e-3)
    assert loss["kl_max"] == pytest.approx(float(divergence.max()), rel=1e-3)
    assert loss["top1_agreement"] == pytest.approx(float(torch.cat(same).double().mean()), abs=2 / len(divergence))
    assert loss["kl_mean"] > 1e-4


def test_a_cut_leaves_nothing_behind_and_vllm_would_load_it(cut: tuple[Path, Path], tiny_base: Path) -> None:
    _, out = cut
    assert not [path for path in out.iterdir() if path.is_dir()]
    assert config_of(out)["r"] == 1
    assert lint_adapter(out, base=tiny_base, max_lora_rank=1).loads
    assert "dataset" in verify(out).parents
