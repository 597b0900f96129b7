"""The NF4 round trip of a weight: what a QLoRA adapter really saw as its base (arXiv:2305.14314), row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import AdapterError

#: Scales that share one scale of their own in double quantization.
_SCALES_PER_BLOCK = 256


@dataclass(frozen=True)
class RoundTrip:
    """A weight as bitsandbytes held it in 4 bits, read by rows: quantized and dequantized bit for bit as in training.

    Attributes:
        weight: gives rows of the original by slice, ``out × in``.
        shape: of the whole weight.
        block_size: weights that share one scale.
        dtype: the torch dtype that the base was loaded in for training.
        scales: the scale of each block, as double quantization left it; None where there was none.
    """

    weight: Any
    shape: tuple[int, int]
    block_size: int
    dtype: Any
    scales: Any

    def __getitem__(self, rows: slice) -> Any:
        """The dequantized rows, in the dtype of the training."""
        from bitsandbytes import functional

        step = _whole_rows(self.shape[1], self.block_size)
        first = rows.start // step * step
        last = min(-(-rows.stop // step) * step, self.shape[0])
        packed, state = functional.quantize_4bit(
            self.weight[first:last].to(self.dtype).contiguous(), blocksize=self.block_size, quant_type="nf4"
        )
        if self.scales is not None:
            start = first * self.shape[1] // self.block_size
            state.absmax = self.scales[start : start + len(state.absmax)]
        return functional.dequantize_4bit(packed, state)[rows.start - first : rows.stop - first]


def round_trip(
    weight: Any, *, shape: tuple[int, ...], quant_type: str, block_size: int, double_quant: bool, weight_dtype: str
) -> RoundTrip:
    """A weight that is quantized to NF4 and back as its rows are asked for.

    Double quantization subtracts the mean of all scales, so they are all computed first: one number a block.

    Args:
        weight: gives rows of the original by slice, ``out × in``.
        shape: of the whole weight.
        quant_type: ``nf4``.
        block_size: weights that share one scale.
        double_quant: whether the scales were quantized as well.
        weight_dtype: the dtype the base was loaded in for training.

    Raises:
        AdapterError: when the dtype has no NF4 kernel.
    """
    import torch

    dtype = getattr(torch, weight_dtype, None)
    if quant_type != "nf4" or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise AdapterError(
            "The adapter's 4-bit base cannot be reproduced.",
            seen=f"quant_type {quant_type!r}, weight_dtype {weight_dtype!r}",
            expected="nf4 from float32, bfloat16 or float16",
            remedy="merge into the original weights: merge_base: original",
        )
    outputs, inputs = shape
    scales = _double_quantized(weight, (outputs, inputs), block_size, dtype) if double_quant else None
    return RoundTrip(weight, (outputs, inputs), block_size, dtype, scales)


def _double_quantized(weight: Any, shape: tuple[int, int], block_size: int, dtype: Any) -> Any:
    """Every block's scale, quantized to 8 bits and back as ``bitsandbytes.functional.quantize_4bit`` does."""
    import torch
    from bitsandbytes import functional

    scales = torch.cat([_scales(weight[rows].to(dtype), block_size) for rows in _aligned_rows(shape, block_size)])
    offset = scales.mean()
    quantized, state = functional.quantize_blockwise(scales - offset, blocksize=_SCALES_PER_BLOCK)
    return functional.dequantize_blockwise(quantized, state) + offset


def _scales(rows: Any, block_size: int) -> Any:
    """The largest magnitude of each block, in float32; the last block may be short."""
    import torch

    flat = rows.abs().flatten()
    whole = len(flat) // block_size * block_size
    scales = flat[:whole].view(-1, block_size).amax(dim=1)
    return torch.cat([scales, flat[whole:].amax().unsqueeze(0)] if whole < len(flat) else [scales]).to(torch.float32)


def _whole_rows(inputs: int, block_size: int) -> int:
    """The fewest rows that are whole blocks together."""
    return block_size // math.gcd(block_size, inputs)


def _aligned_rows(shape: tuple[int, int], block_size: int, elements: int = 1 << 20) -> Iterator[slice]:
    """Slices over all rows, each of which begins where a block begins."""
    least = _whole_rows(shape[1], block_size)
    step = max(elements // max(shape[1], 1) // least, 1) * least
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
