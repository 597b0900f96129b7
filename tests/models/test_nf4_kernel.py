"""A 4-bit kernel that computes other weights than it holds is found before anything is trained or merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError
from tunegate.models import nf4_kernel
from tunegate.models.four_bit import load_four_bit
from tunegate.models.nf4_kernel import kernel_is_right, refuse_wrong_kernel

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("inputs", [96, 100, 130, 4001])
def test_a_kernel_is_believed_only_where_each_block_comes_back_with_its_own_scale(inputs: int, dtype: str) -> None:
    """Blocks of equal values each: the value is the scale, and comes back as it was, in every dtype."""
    from bitsandbytes import functional

    values = torch.arange(inputs) % 97 + 1  # 64 rows of them: as many blocks of 64
    weight = values.repeat_interleave(64).view(64, inputs).to(getattr(torch, dtype))
    back = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    assert kernel_is_right(inputs, 64, dtype) == torch.equal(back, weight)


def test_the_layers_that_come_back_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_kernel, "kernel_is_right", lambda inputs, *_: inputs != 96)
    with pytest.raises(ModelError) as refused:
        refuse_wrong_kernel({"a": 64, "b": 96}, block_size=64, weight_dtype="float32")
    assert refused.value.items == ("b: 96 inputs",)
    assert "1 of 2 layers" in refused.value.seen


def test_a_base_is_loaded_in_4_bits_where_its_widths_come_back_right_and_only_there(make_base: Any) -> None:
    right: Path = make_base(hidden=64)
    load_four_bit(right, dtype="float32", quant_type="nf4", double_quant=True)
    odd: Path = make_base(hidden=96)
    if kernel_is_right(96, 64, "float32"):
        load_four_bit(odd, dtype="float32", quant_type="nf4", double_quant=True)
    else:
        with pytest.raises(ModelError, match="4 bits"):
            load_four_bit(odd, dtype="float32", quant_type="nf4", double_quant=True)
