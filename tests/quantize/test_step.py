"""Quantization with the real llm-compressor on a tiny model, for every scheme."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from tunegate.contracts.errors import DataError, ModelError, RunError
from tunegate.contracts.manifest import sha256_file, verify
from tunegate.contracts.schemes import AWQ, GPTQ, LLMCOMPRESSOR, RTN, SCHEMES
from tunegate.models.files import tokenizer_files
from tunegate.quantize.calibration import calibration_rows, render_calibration
from tunegate.quantize.result import check_result
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run
from tunegate.quantize.stored import COMPRESSED_TENSORS, read_tensor
from tunegate.tensors.shards import stored_tensors

ROWS = 8
LAYERS = 2 * 7

#: A scheme and an algorithm.
Way = tuple[str, str]

WAYS: list[Way] = [(name, way) for name, scheme in SCHEMES.items() for way in scheme.algorithms[LLMCOMPRESSOR]]
INT8: Way = ("W8A8", GPTQ)


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
def quantized(tmp_path_factory, base16, tiny_dataset) -> dict[Way, Path]:
    """The tiny base in every scheme, by every algorithm."""
    made = {}
    for way in WAYS:
        made[way] = tmp_path_factory.mktemp("-".join(way)) / "quantized"
        run(_settings(way), model=base16, dataset=tiny_dataset, output=made[way])
    return made


def _settings(way: Way, **changes) -> QuantizeSettings:
    scheme, algorithm = way
    return QuantizeSettings(scheme=scheme, algorithm=algorithm, num_calibration_samples=ROWS, **changes)


def _stored(folder: Path, name: str):
    return read_tensor(stored_tensors(folder), name).float()


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


def _step(scheme: str, weight):
    """The distance between two codes at each weight, in the groups that share a scale; for floats at its most."""
    groups = weight.reshape(weight.shape[0], -1, 64 if SCHEMES[scheme].grouped else weight.shape[1])
    largest, smallest = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    widest = largest.maximum(-smallest)
    steps = {
        "W4A16": widest / 7.5,
        "W4A16_ASYM": (largest.clamp_min(0) - smallest.clamp_max(0)) / 15,
        "W8A8": widest / 127.5,
        "FP8_DYNAMIC": groups.abs() / 8 + widest / 448 / 512,
        "FP8": groups.abs() / 8 + groups.abs().max() / 448 / 512,
    }
    return steps[scheme].expand(groups.shape).reshape(weight.shape)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_every_weight_stays_within_what_its_codes_can_express(way, quantized, base16) -> None:
    """GPTQ may move a weight away from the nearest code to make up for its neighbours, but not far on average."""
    scheme, algorithm = way
    name, norm = "model.layers.0.mlp.gate_proj", "model.layers.0.post_attention_layernorm.weight"
    factors = _stored(base16, norm) / _stored(quantized[way], norm)  # AWQ's; 1 for the others
    assert bool((factors != 1).any()) == (algorithm == AWQ)
    original, restored = _stored(base16, f"{name}.weight") * factors, _reference(quantized[way], name)
    moved = ((original - restored).abs() - 0.004 * original.abs()).clamp_min(0)  # the norm is stored in bfloat16
    steps = moved / _step(scheme, original)
    assert float(steps.mean()) < 0.5
    if algorithm != GPTQ:
        assert float(steps.max()) < 0.51


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_the_reported_error_is_that_of_the_weights_that_transformers_loads(way, quantized, base16) -> None:
    """AWQ's scaling is undone by the norm in front, which is what the error is measured behind."""
    name, norm = "model.layers.1.self_attn.q_proj", "model.layers.1.input_layernorm.weight"
    factors = _stored(base16, norm) / _stored(quantized[way], norm)
    original, restored = _stored(base16, f"{name}.weight"), _reference(quantized[way], name) / factors
    error = float((original - restored).norm() / original.norm())
    result = json.loads((quantized[way] / "quantize.json").read_text())
    reported = result["layers"][name]["relative_error"]
    if way[1] == AWQ:  # the best undoing is at most as far away
        assert 0.9 * error < reported <= error
    else:
        assert reported == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_tokenizer_template_generation_config_and_embeddings_are_those_of_the_merged_model(
    way, quantized, base16
) -> None:
    folder = quantized[way]
    names = [path.name for path in tokenizer_files(base16)] + ["generation_config.json"]
    assert {"tokenizer.json", "chat_template.jinja"} <= set(names)
    assert all(sha256_file(folder / name) == sha256_file(base16 / name) for name in names)
    stated = json.loads((folder / "quantize.json").read_text())["companions"]
    assert stated == {name: sha256_file(base16 / name) for name in names}
    headers = stored_tensors(folder)
    assert "lm_head.weight" not in headers  # still tied
    assert headers["model.embed_tokens.weight"][1].dtype == "BF16"
    config, before = (json.loads((path / "config.json").read_text()) for path in (folder, base16))
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors" and config == before


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_what_is_evaluated_quantizes_activations_as_the_server_will(way, quantized, base16, tiny_dataset) -> None:
    """Weights alone would flatter 8-bit activations: the loaded model must differ from its dequantized weights."""
    import torch

    from tunegate.models.load import load_causal_lm, load_tokenizer

    model = load_causal_lm(base16)
    rows = calibration_rows(tiny_dataset, count=ROWS)
    ids = torch.tensor(render_calibration(load_tokenizer(base16), rows, max_length=2048).token_ids[:1])
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        restored = dict(_restored(quantized[way]).named_parameters())
        for name, weight in model.named_parameters():
            weight.copy_(restored[name])
        weights_only = model(ids).logits.log_softmax(-1)
        after = load_causal_lm(quantized[way])(ids).logits.log_softmax(-1)
    assert float((before - after).abs().max()) > 1e-3
    assert _kl(before, after) < (0.5 if SCHEMES[way[0]].grouped else 0.1)
    if SCHEMES[way[0]].activations == "float16":
        assert float((weights_only - after).abs().max()) < 1e-3
    else:
        assert 1e-5 < _kl(weights_only, after) < 0.1


def _kl(reference, candidate) -> float:
    return float((reference.exp() * (reference - candidate)).sum(-1).mean())


def test_the_scale_of_activations_is_measured_on_the_calibration_rows(quantized, base16, tiny_dataset) -> None:
    """FP8's fixed scale is the largest input of the layer over the very rows, by the largest number of the format."""
    import torch

    from tunegate.models.load import load_causal_lm, load_tokenizer

    name, folder = "model.layers.0.mlp.down_proj", quantized[("FP8", RTN)]
    model, largest = load_causal_lm(base16), []
    model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: largest.append(float(inputs[0].abs().max())))
    rows = calibration_rows(tiny_dataset, count=ROWS)
    with torch.no_grad():
        for ids in render_calibration(load_tokenizer(base16), rows, max_length=2048).token_ids:
            model(torch.tensor([ids]))
    assert float(_stored(folder, f"{name}.input_scale")) == pytest.approx(max(largest) / 448, rel=0.1)


def test_the_artifact_says_what_was_done_and_takes_less_room(quantized, tiny_dataset) -> None:
    for (scheme, algorithm), folder in quantized.items():
        manifest = verify(folder, kind="quantized")
        result, summary = (json.loads((folder / name).read_text()) for name in ("quantize.json", "summary.json"))
        assert len(result["layers"]) == summary["layers"] == LAYERS
        assert (result["scheme"], result["algorithm"], result["backend"]) == (scheme, algorithm, LLMCOMPRESSOR)
        assert result["group_size"] == (64 if SCHEMES[scheme].grouped else 0)
        assert result["calibration"].get("rows", 0) == (0 if scheme == "FP8_DYNAMIC" else ROWS)
        assert summary["bytes_after"] < summary["bytes_before"]
        assert manifest.parents["dataset"] == verify(tiny_dataset).content_digest
        page = (folder / "page.html").read_text()
        assert "relative error" in page and algorithm in page


def test_the_same_work_gives_the_same_bytes(quantized, base16, tiny_dataset, tmp_path) -> None:
    settings = QuantizeSettings(scheme="W8A8", num_calibration_samples=ROWS)
    again = run(settings, model=base16, dataset=tiny_dataset, output=tmp_path / "again")
    assert again.content_digest == verify(quantized[INT8]).content_digest


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
    shutil.copytree(quantized[INT8], plain, ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(ModelError, match="quantized already"):
        run(QuantizeSettings(scheme="W8A8"), model=plain, dataset=tiny_dataset, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    shutil.copytree(quantized[INT8], folder)
    names = list(json.loads((folder / "quantize.json").read_text())["layers"])
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, folder / "model.safetensors")
    with pytest.raises(RunError, match="changed tensors") as caught:
        check_result(base16, folder, layers=names, form=COMPRESSED_TENSORS)
    assert caught.value.items == ("model.norm.weight",)
    plain = {**weights, f"{names[0]}.weight": weights[f"{names[0]}.weight"].to(torch.bfloat16)}
    save_file(plain, folder / "model.safetensors")
    with pytest.raises(RunError, match="not quantized"):
        check_result(base16, folder, layers=names, form=COMPRESSED_TENSORS)
