"""Whether bitsandbytes' kernel on this machine computes the NF4 weights that it holds (arXiv:2305.14314)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from tunegate.contracts.errors import ModelError

#: How many scales the probe has: a prime, so that no stride between blocks meets the same ones again.
_SCALES = 199


def refuse_wrong_kernel(inputs: Mapping[str, int], *, block_size: int, weight_dtype: str) -> None:
    """Refuses 4-bit layers of which this machine would compute other weights than it holds.

    Args:
        inputs: layer → its number of inputs.
        block_size: weights that share one scale.
        weight_dtype: what the weights are dequantized to.

    Raises:
        ModelError: naming the layers.
    """
    wrong = [name for name, width in inputs.items() if not kernel_is_right(width, block_size, weight_dtype)]
    if wrong:
        raise ModelError(
            "This machine cannot hold the base in 4 bits.",
            seen=f"bitsandbytes dequantizes {len(wrong)} of {len(inputs)} layers with other blocks' scales",
            expected=f"each block of {block_size} weights times its own scale",
            remedy="use a GPU or another CPU; or train with method: lora, and merge with merge_base: original",
            items=[f"{name}: {inputs[name]} inputs" for name in wrong],
        )


@functools.cache
def kernel_is_right(inputs: int, block_size: int, weight_dtype: str) -> bool:
    """Whether this machine's kernel multiplies each block of a weight by its own scale.

    The kernel for AVX512 of bitsandbytes 0.50 counts the blocks of a row from the row's beginning. Where a block begins
    in one row and ends in the next it takes another one's scale: measured at 96 inputs and blocks of 64. The kernel is
    held against the sum it stands for: a value of the table, times the largest magnitude of its block.
    """
    if inputs % block_size == 0:
        return True
    import torch
    from bitsandbytes import functional

    dtype = getattr(torch, weight_dtype)
    rows = 2 * block_size // math.gcd(block_size, inputs)  # whole blocks
    # Neighbours have different scales, all of which every dtype holds exactly: float16 ends at 65504.
    magnitudes = (torch.arange(rows * inputs) // block_size % _SCALES + 1).view(rows, inputs)
    packed, state = functional.quantize_4bit(magnitudes.to(dtype), blocksize=block_size, quant_type="nf4")
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1).flatten()[: rows * inputs].long()
    scales = state.absmax.repeat_interleave(block_size)[: rows * inputs]
    expected = (state.code[codes] * scales).view(rows, inputs)
    held = functional.dequantize_4bit(packed, state).to(torch.float32)
    return bool(torch.allclose(held, expected, rtol=2 * torch.finfo(dtype).eps, atol=0))
