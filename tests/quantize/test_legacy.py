"""AutoAWQ and AutoGPTQ for real, in their own environment: ``make e2e-legacy``."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.manifest import sha256_file, verify
from tunegate.models.files import tokenizer_files
from tunegate.quantize.legacy.environment import find_python
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run
from tunegate.quantize.stored import AWQ_PACKED, read_tensor
from tunegate.tensors.shards import stored_tensors

pytestmark = pytest.mark.legacy

AUTOAWQ = QuantizeSettings(backend="autoawq", scheme="W4A16_ASYM", num_calibration_samples=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory, make_base) -> Path:
    """Wide enough for AutoAWQ, in bfloat16, with rotary embeddings that are not the default's."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(make_base(hidden=128), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def python() -> Path:
    return find_python("autoawq")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, base, tiny_dataset) -> Path:
    output = tmp_path_factory.mktemp("autoawq") / "quantized"
    run(AUTOAWQ, model=base, dataset=tiny_dataset, output=output)
    return output


def test_autoawq_makes_an_artifact_that_says_what_was_done(quantized, base) -> None:
    verify(quantized, kind="quantized")
    result = json.loads((quantized / "quantize.json").read_text())
    assert (result["backend"], result["algorithm"], result["group_size"]) == ("autoawq", "awq", 128)
    assert len(result["layers"]) == 14 and result["calibration"]["rows"] == 8
    assert all(0 < layer["relative_error"] < 0.2 for layer in result["layers"].values())
    assert result["bytes_after"] < result["bytes_before"]
    for path in tokenizer_files(base):
        assert sha256_file(quantized / path.name) == sha256_file(path)
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (quantized, base))
    assert config.pop("quantization_config")["quant_method"] == "awq" and config == before
    assert not list(quantized.glob("*.bin")) and not list(quantized.glob("*.pt"))


def test_the_restored_weights_are_those_of_autoawqs_own_kernel(quantized, python, tmp_path) -> None:
    """The oracle is what AutoAWQ's own layer computes on a CPU: the identity through it is the layer's weights."""
    import numpy as np

    name = "model.layers.1.mlp.down_proj"
    script = f"""
import sys, torch, numpy
from safetensors.torch import load_file
from awq.utils.packing_utils import dequantize_gemm
w = load_file({str(quantized / "model.safetensors")!r})
q, z, s = (w[{name!r} + "." + part] for part in ("qweight", "qzeros", "scales"))
numpy.save(sys.argv[1], dequantize_gemm(q, z, s, 4, 128).float().numpy())
"""
    subprocess.run([python, "-c", script, tmp_path / "weights.npy"], check=True, capture_output=True)
    theirs = np.load(tmp_path / "weights.npy").T
    ours = AWQ_PACKED.dequantized(stored_tensors(quantized), name).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)  # theirs multiplies in float16


def test_the_quantized_model_answers_as_well_as_llm_compressors(quantized, base, tiny_dataset, tmp_path) -> None:
    """Loaded by the very function that evaluates: a wrong order of packed weights would make noise of it."""
    import torch

    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.quantize.calibration import calibration_rows, render_calibration

    other = QuantizeSettings(scheme="W4A16_ASYM", num_calibration_samples=8)
    run(other, model=base, dataset=tiny_dataset, output=tmp_path / "other")
    rows = calibration_rows(tiny_dataset, count=8)
    rendered = render_calibration(load_tokenizer(base), rows, max_length=512).token_ids
    models = [load_causal_lm(folder) for folder in (base, quantized, tmp_path / "other")]
    lost = [0.0, 0.0]
    with torch.no_grad():
        for ids in rendered:
            before, *after = (model(torch.tensor([ids])).logits.log_softmax(-1) for model in models)
            for place, candidate in enumerate(after):
                lost[place] += float((before.exp() * (before - candidate)).sum(-1).mean()) / len(rendered)
    assert 1e-4 < lost[0] < 1.3 * lost[1]


def test_the_old_transformers_computes_what_the_new_one_does(base, python, tmp_path) -> None:
    """It would take other rotary embeddings than the model has, without a word, were the config not translated."""
    import numpy as np
    import torch

    from tunegate.models.load import load_causal_lm
    from tunegate.quantize.legacy.model_files import readable_copy

    (tmp_path / "copy").mkdir()
    readable_copy(base, tmp_path / "copy")
    ids = list(range(3, 60))
    script = f"""
import sys, torch, numpy
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "copy")!r}, torch_dtype=torch.float32)
with torch.no_grad():
    numpy.save(sys.argv[1], model(torch.tensor([{ids}])).logits.numpy())
"""
    subprocess.run([python, "-c", script, tmp_path / "logits.npy"], check=True, capture_output=True)
    with torch.no_grad():
        ours = load_causal_lm(base, dtype="float32")(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ours, atol=1e-4)


def test_the_same_work_gives_the_same_bytes(quantized, base, tiny_dataset, tmp_path) -> None:
    again = run(AUTOAWQ, model=base, dataset=tiny_dataset, output=tmp_path / "again")
    assert again.content_digest == verify(quantized).content_digest


def test_where_the_environment_lies_has_no_part_in_what_was_done(quantized, base, tiny_dataset, python) -> None:
    """It lies elsewhere on every machine: the same work is found done, and refused as other work by none."""
    settings = dataclasses.replace(AUTOAWQ, legacy_python=str(python))
    assert run(settings, model=base, dataset=tiny_dataset, output=quantized) == verify(quantized)


def test_embeddings_keep_their_bytes_and_norms_their_dtype(quantized, base) -> None:
    import torch

    before, after = stored_tensors(base), stored_tensors(quantized)
    name = "model.embed_tokens.weight"
    assert torch.equal(read_tensor(before, name), read_tensor(after, name)) and "lm_head.weight" not in after
    assert all(after[name][1] == before[name][1] for name in before if name.endswith("norm.weight"))


def test_auto_gptq_without_a_gpu_says_so_and_what_to_use(base, tiny_dataset, tmp_path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings = QuantizeSettings(backend="auto_gptq", num_calibration_samples=8)
    with pytest.raises(SettingsError, match="GPU alone") as caught:
        run(settings, model=base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "llmcompressor" in caught.value.remedy and not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_auto_gptq_on_a_gpu(base, tiny_dataset, tmp_path) -> None:
    settings = QuantizeSettings(backend="auto_gptq", num_calibration_samples=8)
    run(settings, model=base, dataset=tiny_dataset, output=tmp_path / "out")
    verify(tmp_path / "out", kind="quantized")
    result = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert result["algorithm"] == "gptq" and len(result["layers"]) == 14
    assert all(0 < layer["relative_error"] < 0.3 for layer in result["layers"].values())
