"""The NF4 round trip of a weight: what a QLoRA adapter really saw as its base (arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any

from tunegate.contracts.errors import AdapterError


def round_trip(weight: Any, *, quant_type: str, block_size: int, double_quant: bool, weight_dtype: str) -> Any:
    """Quantizes a 16-bit weight to NF4 and back, exactly as bitsandbytes held it in training.

    Double quantization subtracts the mean of all block scales, so the whole tensor is needed at once.

    Args:
        weight: the original weight, ``out × in``.
        quant_type: ``nf4``.
        block_size: weights that share one scale.
        double_quant: whether the scales were quantized as well.
        weight_dtype: the dtype the base was loaded in for training.

    Returns:
        The dequantized weight in ``weight_dtype``, ``out × in``.

    Raises:
        AdapterError: when the dtype has no NF4 kernel.
    """
    import torch
    from bitsandbytes import functional

    dtype = getattr(torch, weight_dtype, None)
    if quant_type != "nf4" or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise AdapterError(
            "The adapter's 4-bit base cannot be reproduced.",
            seen=f"quant_type {quant_type!r}, weight_dtype {weight_dtype!r}",
            expected="nf4 from float32, bfloat16 or float16",
            remedy="merge into the original weights: merge_base: original",
        )
    packed, state = functional.quantize_4bit(
        weight.to(dtype).contiguous(), blocksize=block_size, compress_statistics=double_quant, quant_type=quant_type
    )
    return functional.dequantize_4bit(packed, state)
