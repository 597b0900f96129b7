"""Quantization with the real llm-compressor on a tiny model, for every scheme."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from tunegate.contracts.errors import DataError, ModelError, RunError, SettingsError
from tunegate.contracts.manifest import sha256_file, verify
from tunegate.models.files import tokenizer_files
from tunegate.quantize.result import check_result, read_tensor
from tunegate.quantize.settings import SCHEMES, QuantizeSettings
from tunegate.quantize.step import run
from tunegate.tensors.shards import stored_tensors

ROWS = 8
LAYERS = 2 * 7


@pytest.fixture(scope="module")
def base16(tmp_path_factory, tiny_base) -> Path:
    """The tiny base as merge leaves models: bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("base16") / "model"
    shutil.copytree(tiny_base, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, base16, tiny_dataset) -> dict[str, Path]:
    """The tiny base in every scheme."""
    made = {}
    for scheme in SCHEMES:
        made[scheme] = tmp_path_factory.mktemp(scheme) / "quantized"
        settings = QuantizeSettings(scheme=scheme, num_calibration_samples=ROWS)
        run(settings, model=base16, dataset=tiny_dataset, output=made[scheme])
    return made


def _weight(folder: Path, name: str):
    headers = stored_tensors(folder)
    return read_tensor(headers, f"{name}.weight").float()


@functools.cache
def _restored(folder: Path):
    """The model with its weights as compressed-tensors itself restores them."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )


def _reference(folder: Path, name: str):
    return _restored(folder).get_submodule(name).weight.detach().float()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_stays_within_what_its_codes_can_express(scheme, quantized, base16) -> None:
    """GPTQ may move a weight away from the nearest code to make up for its neighbours, but not far on average."""
    name = "model.layers.0.mlp.down_proj"
    original, restored = _weight(base16, name), _reference(quantized[scheme], name)
    groups = original.reshape(original.shape[0], -1, 64 if scheme == "W4A16" else original.shape[1])
    largest = groups.abs().amax(-1, keepdim=True)
    step = {"W4A16": largest / 7.5, "W8A8": largest / 127.5, "FP8_DYNAMIC": groups.abs() / 8 + largest / 448}[scheme]
    moved = (original - restored).reshape(groups.shape).abs()
    assert float((moved / step).mean()) < 0.5
    if scheme == "FP8_DYNAMIC":  # rounding to the nearest of 3 mantissa bits
        assert bool((moved <= step / 2 + 1e-6).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_reported_error_is_that_of_the_weights_that_transformers_loads(scheme, quantized, base16) -> None:
    name = "model.layers.1.self_attn.q_proj"
    original, restored = _weight(base16, name), _reference(quantized[scheme], name)
    error = float((original - restored).norm() / original.norm())
    result = json.loads((quantized[scheme] / "quantize.json").read_text())
    assert result["layers"][name]["relative_error"] == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokenizer_template_generation_config_and_embeddings_are_those_of_the_merged_model(
    scheme, quantized, base16
) -> None:
    folder = quantized[scheme]
    names = [path.name for path in tokenizer_files(base16)] + ["generation_config.json"]
    assert {"tokenizer.json", "chat_template.jinja"} <= set(names)
    assert all(sha256_file(folder / name) == sha256_file(base16 / name) for name in names)
    headers = stored_tensors(folder)
    assert "lm_head.weight" not in headers  # still tied
    assert headers["model.embed_tokens.weight"][1].dtype == "BF16"
    config, before = (json.loads((path / "config.json").read_text()) for path in (folder, base16))
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors" and config == before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_evaluated_quantizes_activations_as_the_server_will(scheme, quantized, base16) -> None:
    """Weights alone would flatter W8A8 and FP8_DYNAMIC: the loaded model must differ from its dequantized weights."""
    import torch

    from tunegate.models.load import load_causal_lm

    model, ids = load_causal_lm(base16), torch.arange(3, 40).unsqueeze(0)
    restored = _restored(quantized[scheme])
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        for name in json.loads((quantized[scheme] / "quantize.json").read_text())["layers"]:
            model.get_submodule(name).weight.copy_(restored.get_submodule(name).weight)
        weights_only = model(ids).logits.log_softmax(-1)
        after = load_causal_lm(quantized[scheme])(ids).logits.log_softmax(-1)
    assert float((before - after).abs().max()) > 1e-3
    gap = float((weights_only.exp() * (weights_only - after)).sum(-1).mean())
    if scheme == "W4A16":
        assert float((weights_only - after).abs().max()) < 1e-3
    else:
        assert 1e-5 < gap < 0.1


def test_the_artifact_says_what_was_done_and_takes_less_room(quantized, tiny_dataset) -> None:
    for scheme, folder in quantized.items():
        manifest = verify(folder, kind="quantized")
        result, summary = (json.loads((folder / name).read_text()) for name in ("quantize.json", "summary.json"))
        assert len(result["layers"]) == summary["layers"] == LAYERS
        assert result["group_size"] == (64 if scheme == "W4A16" else 0)
        assert result["calibration"].get("rows", 0) == (0 if scheme == "FP8_DYNAMIC" else ROWS)
        assert summary["bytes_after"] < summary["bytes_before"]
        assert manifest.parents["dataset"] == verify(tiny_dataset).content_digest
        assert "relative error" in (folder / "page.html").read_text()


def test_the_same_work_gives_the_same_bytes(quantized, base16, tiny_dataset, tmp_path) -> None:
    settings = QuantizeSettings(scheme="W8A8", num_calibration_samples=ROWS)
    again = run(settings, model=base16, dataset=tiny_dataset, output=tmp_path / "again")
    assert again.content_digest == verify(quantized["W8A8"]).content_digest


def test_progress_is_plain_lines_and_nothing_is_left_in_the_working_folder(
    base16, tiny_dataset, tmp_path, monkeypatch, capfd
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    settings = QuantizeSettings(scheme="W8A8", num_calibration_samples=ROWS, ignore=("lm_head", "re:.*mlp.*"))
    run(settings, model=base16, dataset=tiny_dataset, output=tmp_path / "out")
    out, err = capfd.readouterr()
    assert "[quantize] 8/8 layers quantized" in out
    assert "\x1b" not in out + err and "it/s" not in out + err and err == ""
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_quantized_model_is_not_quantized_again(quantized, tiny_dataset, tmp_path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(quantized["W8A8"], plain, ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(ModelError, match="quantized already"):
        run(QuantizeSettings(scheme="W8A8"), model=plain, dataset=tiny_dataset, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_group_size_for_a_scheme_without_groups_is_refused(base16, tiny_dataset, tmp_path) -> None:
    with pytest.raises(SettingsError, match="no meaning"):
        settings = QuantizeSettings(scheme="W8A8", group_size=64)
        run(settings, model=base16, dataset=tiny_dataset, output=tmp_path / "out")


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Makes the test fail when a model is loaded."""

    def load(*args, **kwargs) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("tunegate.models.load.load_causal_lm", load)


def test_too_few_calibration_rows_end_before_the_model_is_loaded(base16, tiny_dataset, tmp_path, no_loading) -> None:
    with pytest.raises(DataError, match="too few") as caught:
        settings = QuantizeSettings(scheme="W8A8", num_calibration_samples=5000)
        run(settings, model=base16, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("indexed", [False, True])
def test_a_weight_file_that_does_not_belong_ends_before_the_model_is_loaded(
    indexed, base16, tiny_dataset, tmp_path, no_loading
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base16, model)
    shutil.copyfile(model / "model.safetensors", model / "old.safetensors")
    if indexed:
        weight_map = dict.fromkeys(stored_tensors(base16), "model.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="weight files that") as caught:
        run(QuantizeSettings(scheme="W8A8"), model=model, dataset=tiny_dataset, output=tmp_path / "out")
    assert "old.safetensors" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_layer_that_was_left_out_or_a_tensor_that_changed_is_found(quantized, base16, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(quantized["W8A8"], folder)
    names = list(json.loads((folder / "quantize.json").read_text())["layers"])
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, folder / "model.safetensors")
    with pytest.raises(RunError, match="changed tensors") as caught:
        check_result(base16, folder, layers=names)
    assert caught.value.items == ("model.norm.weight",)
    plain = {**weights, f"{names[0]}.weight": weights[f"{names[0]}.weight"].to(torch.bfloat16)}
    save_file(plain, folder / "model.safetensors")
    with pytest.raises(RunError, match="not quantized"):
        check_result(base16, folder, layers=names)
