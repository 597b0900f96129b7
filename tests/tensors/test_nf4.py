"""NF4: the weights that a merge starts from are the weights that training used, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.contracts.errors import AdapterError
from tunegate.models.nf4_kernel import kernel_is_right
from tunegate.tensors.nf4 import round_trip

torch = pytest.importorskip("torch")


def by_rows(weight: Any, step: int, **how: Any) -> Any:
    """The round trip, ``step`` rows at a time."""
    plain = {"quant_type": "nf4", "block_size": 64, "double_quant": True, "weight_dtype": "float32"}
    held = round_trip(weight, shape=tuple(weight.shape), **{**plain, **how})
    return torch.cat([held[slice(at, min(at + step, len(weight)))] for at in range(0, len(weight), step)])


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 150),
    step=st.integers(1, 40),
    block_size=st.sampled_from([32, 64, 128]),
    double_quant=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_whichever_rows_are_asked_for_they_are_those_of_the_whole_weight_in_bitsandbytes(
    outputs: int, inputs: int, step: int, block_size: int, double_quant: bool, dtype: str
) -> None:
    from bitsandbytes import functional

    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs * inputs))
    packed, state = functional.quantize_4bit(
        weight.to(getattr(torch, dtype)), blocksize=block_size, compress_statistics=double_quant, quant_type="nf4"
    )
    held = functional.dequantize_4bit(packed, state)
    how: dict[str, Any] = {"block_size": block_size, "double_quant": double_quant, "weight_dtype": dtype}
    if not kernel_is_right(inputs, block_size, dtype):  # as on a CPU with AVX512 at 96 inputs and blocks of 64
        return  # refused before anything is asked of it: tests/models/test_nf4_kernel.py
    assert torch.equal(by_rows(weight, step, **how), held)
    blocks = -(-weight.numel() // block_size)
    scales = torch.nn.functional.pad(weight.flatten().abs(), (0, blocks * block_size - weight.numel()))
    scales = scales.view(-1, block_size).amax(1).repeat_interleave(block_size)[: weight.numel()].view(weight.shape)
    error = (held.float() - weight).abs() / scales  # half the widest gap of NF4's grid, and the scale's own rounding
    assert float(error.max()) < 0.16 + (0.06 if double_quant else 0) + (0.01 if dtype != "float32" else 0)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_round_trip_is_bitsandbytes_own_dequantization_of_the_loaded_model(
    dtype: str, double_quant: bool, tiny_base: Path
) -> None:
    import bitsandbytes
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        str(tiny_base), quantization_config=config, dtype=getattr(torch, dtype), device_map="cpu"
    )
    originals = load_file(tiny_base / "model.safetensors")
    checked = 0
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            held = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            ours = by_rows(originals[f"{name}.weight"], 10, double_quant=double_quant, weight_dtype=dtype)
            assert ours.dtype == held.dtype and torch.equal(ours, held.reshape(ours.shape))
            checked += 1
    assert checked == 14


def test_the_round_trip_lies_on_the_nf4_grid_of_the_paper() -> None:
    # The sixteen values of arXiv:2305.14314, Appendix E; without double quantization a block's scale is its maximum.
    grid = torch.tensor(
        [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
         -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
         0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    )  # fmt: skip
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    ours = by_rows(weight, 8, double_quant=False)
    scale = weight.abs().amax(dim=1, keepdim=True)
    nearest = grid[(weight[..., None] / scale[..., None] - grid).abs().argmin(-1)] * scale
    assert torch.allclose(ours, nearest, atol=1e-6)


def test_an_unknown_kind_of_four_bit_is_refused() -> None:
    with pytest.raises(AdapterError, match="4-bit"):
        by_rows(torch.zeros(4, 64), 4, quant_type="fp4")
