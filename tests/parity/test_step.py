"""Parity: the figures are torch's own on models loaded by others, and a damaged merge is found where it was damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import AdapterError, ArtifactError, DataError
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.gate.parity import check_parity, read_parity
from tunegate.gate.policy import parse_policy
from tunegate.models.chat import render
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.parity import trace
from tunegate.parity.settings import ParitySettings
from tunegate.parity.step import run
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings

torch = pytest.importorskip("torch")

Tensors = dict[str, Any]


def altered(source: Path, output: Path, kind: str, change: Callable[[Tensors], Tensors] = lambda same: same) -> Path:
    """A model artifact that is another one with some of its weights changed."""
    from safetensors.torch import load_file, save_file

    def build(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})

    produce(output, kind=kind, parents={"model": verify(source).content_digest}, settings={}, build=build)
    return output


def rounded(tensors: Tensors) -> Tensors:
    """Every weight to three bits of mantissa, as a coarse quantization would."""
    return {name: value.to(torch.float8_e4m3fn).to(value.dtype) for name, value in tensors.items()}


def scaled(layer: int) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        within = f"model.layers.{layer}."
        return {
            n: v * 1.1 if n.startswith(within) and n.endswith("proj.weight") else v.clone() for n, v in tensors.items()
        }

    return change


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, trained: Any, merged: Path) -> dict[str, Path]:
    quantized = altered(merged, tmp_path_factory.mktemp("quantized") / "quantized", "quantized", rounded)
    return {"base_model": tiny_base, "adapter": trained["qlora"], "merged": merged, "quantized": quantized}


@pytest.fixture(scope="module")
def compared(models: dict[str, Path], tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("parity") / "parity"
    run(ParitySettings(batch_size=2), **models, dataset=tiny_dataset, output=output)
    return output


def report(output: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((output / "parity.json").read_text("utf-8"))
    return document


def with_states(layers: Any, call: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What a call gives, and what each of the layers put out meanwhile."""
    caught: list[Any] = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: caught.append(output)) for layer in layers]
    found = call()
    for hook in hooks:
        hook.remove()
    return found, caught


def asked_by_others(model: Any, base: Path, dataset: Path) -> tuple[Any, list[Any]]:
    """Log-probabilities of every answer's tokens in float64, and the states behind both layers, row by row."""
    tokenizer, log_probs = load_tokenizer(base), []
    states: list[list[Any]] = [[], []]
    rows = [json.loads(line) for line in (dataset / "validation.jsonl").read_text("utf-8").splitlines()]
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    for row in sorted(rows, key=lambda row: str(row["id"])):
        rendered = render(tokenizer, row["prompt"], row["completion"])
        ids = rendered.prompt_ids + rendered.completion_ids
        with torch.no_grad():
            logits, caught = with_states(core.model.layers, lambda ids=ids: model(torch.tensor([ids])).logits[0])
        places = slice(len(rendered.prompt_ids) - 1, len(ids) - 1)
        log_probs.append(logits[places].double().log_softmax(-1))
        for layer, output in enumerate(caught):
            states[layer].append(output[0, places].double())
    return torch.cat(log_probs), [torch.cat(state) for state in states]


def test_every_figure_is_torchs_on_the_models_that_peft_and_bitsandbytes_load(
    compared: Path, models: dict[str, Path], tiny_dataset: Path
) -> None:
    from peft import PeftModel

    on_nf4 = load_base(models["base_model"], TrainSettings(method="qlora"))
    loaded = {
        "adapter": PeftModel.from_pretrained(on_nf4, str(models["adapter"])).eval(),
        "merged": load_causal_lm(models["merged"]).eval(),
        "quantized": load_causal_lm(models["quantized"]).eval(),
    }
    asked = {role: asked_by_others(model, models["base_model"], tiny_dataset) for role, model in loaded.items()}
    for name, found in report(compared)["pairs"].items():
        candidate, _, reference = name.partition(" against ")
        (p, h), (q, other) = asked[reference], asked[candidate]
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        assert found["mean_kl"] == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-9), name
        assert found["max_token_kl"] == pytest.approx(float(kl.max()), rel=1e-3, abs=1e-8), name
        assert found["top1_agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean())), name
        errors = [float((a - b).norm() / a.norm()) for a, b in zip(h, other, strict=True)]
        assert found["layer_errors"] == pytest.approx(errors, rel=1e-3, abs=1e-6), name
    assert report(compared)["pairs"]["quantized against merged"]["mean_kl"] > 1e-4  # there was something to measure


def test_the_merge_of_a_qlora_adapter_is_its_nf4_model_but_for_rounding(compared: Path) -> None:
    document = report(compared)
    merge = document["pairs"]["merged against adapter"]
    assert merge["mean_kl"] < 1e-8
    assert merge["top1_agreement"] == 1.0
    assert document["noise_floor"]["mean_kl"] < 1e-8
    assert document["layers"] == ["model.layers.0", "model.layers.1"]
    assert document["rows"] >= 2


@pytest.mark.parametrize("layer", [0, 1])
def test_a_damaged_merge_is_found_and_its_layer_named_and_an_equal_model_is_equal(
    layer: int, models: dict[str, Path], tiny_dataset: Path, tmp_path: Path
) -> None:
    damaged = altered(models["merged"], tmp_path / "merged", "merged", scaled(layer))
    same = altered(damaged, tmp_path / "quantized", "quantized")
    given = {**models, "merged": damaged, "quantized": same}
    run(ParitySettings(), **given, dataset=tiny_dataset, output=tmp_path / "parity")
    document = report(tmp_path / "parity")
    merge, equal = document["pairs"]["merged against adapter"], document["pairs"]["quantized against merged"]
    assert merge["mean_kl"] > 1000 * max(document["noise_floor"]["mean_kl"], 1e-9)
    assert merge["worst_layer"] == f"model.layers.{layer}"
    assert equal["max_token_kl"] <= max(document["noise_floor"]["max_token_kl"], 1e-12)
    assert (equal["top1_agreement"], equal["worst_layer"]) == (1.0, None)


def test_the_worst_tokens_are_named_with_their_rows_and_texts(compared: Path, models: dict[str, Path]) -> None:
    import pyarrow.parquet as pq

    tokenizer = load_tokenizer(models["merged"])
    tokens = [
        t for t in pq.read_table(compared / "tokens.parquet").to_pylist() if t["pair"] == "quantized against merged"
    ]
    document = report(compared)
    assert len(tokens) == document["tokens"]
    named = document["pairs"]["quantized against merged"]["worst_tokens"]
    assert [token["kl"] for token in named] == sorted((token["kl"] for token in tokens), reverse=True)[: len(named)]
    assert named[0]["expected_text"] == tokenizer.decode([named[0]["expected"]])
    page = (compared / "page.html").read_text("utf-8")
    assert named[0]["row_id"] in page
    assert "model.layers." in page


def test_the_gate_reads_what_is_written_here(compared: Path, models: dict[str, Path], tiny_dataset: Path) -> None:
    rules = [
        {"reference": "adapter", "candidate": "merged", "max_mean_kl": 1e-6, "min_top1_agreement": 1.0},
        {"reference": "merged", "candidate": "quantized", "max_token_kl": 1e-9},
        {"reference": "adapter", "candidate": "quantized", "max_layer_error": 0.9},
    ]
    comparison = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.1}
    policy = parse_policy({"checks": [comparison], "parity": rules})
    artifacts = {"dataset": verify(tiny_dataset)}
    artifacts |= {name: verify(models[name]) for name in ("adapter", "merged", "quantized")}
    checks = check_parity(policy.parity, read_parity(compared, verify(compared, kind="parity")), artifacts=artifacts)
    assert [check.decision for check in checks] == ["PASS", "PASS", "PASS", "FAIL", "PASS"]
    assert "grows most in model.layers." in checks[3].reason
    assert set(checks[3].rows) <= {
        row["row_id"] for row in report(compared)["pairs"]["quantized against merged"]["worst_tokens"]
    }


def test_the_artifact_is_bound_to_what_was_compared_and_is_made_once(
    compared: Path, models: dict[str, Path], tiny_dataset: Path
) -> None:
    manifest = verify(compared, kind="parity")
    assert manifest.parents == report(compared)["digests"]
    assert {verify(models[name]).content_digest for name in ("adapter", "merged", "quantized")} < {
        *manifest.parents.values()
    }
    assert run(ParitySettings(batch_size=2), **models, dataset=tiny_dataset, output=compared) == manifest
    assert not [path for path in compared.iterdir() if path.name.startswith(".")]


def test_full_fine_tuning_is_compared_with_the_tuned_model_itself(
    trained_full: Path, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    merged = altered(trained_full, tmp_path / "merged", "merged")
    quantized = altered(merged, tmp_path / "quantized", "quantized", rounded)
    models = {"base_model": tiny_base, "adapter": trained_full, "merged": merged, "quantized": quantized}
    run(ParitySettings(rows=1), **models, dataset=tiny_dataset, output=tmp_path / "parity")
    found = report(tmp_path / "parity")["pairs"]
    assert found["merged against adapter"]["max_token_kl"] == pytest.approx(0, abs=1e-12)
    assert found["quantized against merged"]["mean_kl"] > 1e-4


def test_the_noise_floor_is_the_merged_model_in_another_batching(
    models: dict[str, Path], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row alone is moved a little: nothing but the noise floor may see it, and it must."""
    real = trace.score

    def disturbed(model: Any, rows: Any, *, batch_size: int, with_layers: bool) -> Any:
        for scored in real(model, rows, batch_size=batch_size, with_layers=with_layers):
            moved = 0.1 * (batch_size == 1)
            yield dataclasses.replace(scored, log_probs=scored.log_probs * (1 + moved), layers=scored.layers + moved)

    run(ParitySettings(rows=2), **models, dataset=tiny_dataset, output=tmp_path / "parity")
    monkeypatch.setattr(trace, "score", disturbed)
    run(ParitySettings(rows=2), **models, dataset=tiny_dataset, output=tmp_path / "disturbed")
    quiet, disturbed_report = report(tmp_path / "parity"), report(tmp_path / "disturbed")
    assert disturbed_report["pairs"] == quiet["pairs"]
    assert quiet["noise_floor"]["mean_kl"] < 1e-8
    assert disturbed_report["noise_floor"]["mean_kl"] > 1e-4
    assert disturbed_report["noise_floor"]["max_layer_error"] > 1e-3


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(
    models: dict[str, Path], make_base: Any, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tunegate.parity.step.record", loads)
    output = tmp_path / "parity"
    with pytest.raises(AdapterError, match="trained on another base"):
        run(ParitySettings(), **{**models, "base_model": make_base(seed=5)}, dataset=tiny_dataset, output=output)
    with pytest.raises(ArtifactError, match="wrong kind"):
        run(ParitySettings(), **{**models, "quantized": models["merged"]}, dataset=tiny_dataset, output=output)
    with pytest.raises(DataError, match="no row to compare"):
        run(ParitySettings(max_length=8), **models, dataset=tiny_dataset, output=output)
    assert not any(tmp_path.iterdir())
