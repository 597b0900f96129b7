"""4-bit weights of AutoAWQ and AutoGPTQ: restored as they were packed, and loaded as a plain model."""

import json
import shutil
from pathlib import Path

import pytest

from tunegate.contracts.errors import ModelError
from tunegate.models.load import load_causal_lm
from tunegate.models.packed import awq_weight, gptq_weight

GROUP = 32


def _codes(weight):
    """Integers 0 to 15, zero points and scales, each [outputs, …], by plain rounding."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = ((high - low) / 15).clamp_min(1e-8).half().float()
    points = (-low / scales).round().clamp(1, 15)
    codes = (groups / scales.unsqueeze(-1) + points.unsqueeze(-1)).round().clamp(0, 15)
    return codes.reshape(weight.shape).int(), points.int(), scales


def _words(values, order=range(8)):
    """Eight neighbours of the last dimension in a word: the one that ``order`` names first lies lowest."""
    import torch

    parts = values.reshape(values.shape[0], -1, 8).long()
    words = sum(parts[..., place] << (4 * shift) for shift, place in enumerate(order))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _awq(codes, points, scales):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": _words(codes.T, order), "qzeros": _words(points.T, order), "scales": scales.T.half()}


def _gptq(codes, points, scales):
    import torch

    groups = torch.arange(codes.shape[1], dtype=torch.int32) // GROUP
    return {
        "qweight": _words(codes).T, "qzeros": _words(points.T - 1), "scales": scales.T.half(), "g_idx": groups,
    }  # fmt: skip


FORMATS = {"awq": (_awq, awq_weight), "gptq": (_gptq, gptq_weight)}


def _plain(codes, points, scales):
    spread = [values.repeat_interleave(GROUP, dim=1) for values in (points, scales)]
    return (codes - spread[0]).float() * spread[1]


@pytest.mark.parametrize("method", FORMATS)
def test_a_packed_layer_is_restored_to_what_its_codes_stand_for(method) -> None:
    import torch

    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    pack, restore = FORMATS[method]
    parts = pack(*_codes(weight))
    assert torch.equal(restore(lambda name: parts[name.removeprefix("a.")], "a"), _plain(*_codes(weight)))


@pytest.fixture(params=FORMATS)
def packed(request, tmp_path, tiny_base) -> tuple[Path, dict]:
    """The tiny base packed, and its weights restored."""
    from safetensors.torch import load_file, save_file

    folder, (pack, _) = tmp_path / "packed", FORMATS[request.param]
    shutil.copytree(tiny_base, folder)
    stored, plain = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight"):
            coded = _codes(weight)
            plain[name] = _plain(*coded)
            stored |= {name.replace("weight", part): t.contiguous() for part, t in pack(*coded).items()}
        else:
            stored[name] = plain[name] = weight
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    stated = {"quant_method": request.param, "bits": 4, "group_size": GROUP}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    return folder, plain


def test_a_packed_model_is_evaluated_with_its_restored_weights(packed, tiny_base) -> None:
    """Else an AutoAWQ model could be made, and not judged beside the merged one."""
    import torch

    folder, plain = packed
    model, reference = load_causal_lm(folder), load_causal_lm(tiny_base)
    reference.load_state_dict(plain, strict=False)
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.training
    assert model.generation_config.eos_token_id == reference.generation_config.eos_token_id


def test_a_packed_model_with_a_gap_is_refused(packed) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = packed
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.input_layernorm.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not those of its config") as caught:
        load_causal_lm(folder)
    assert caught.value.items == ("model.layers.1.input_layernorm.weight: missing",)
