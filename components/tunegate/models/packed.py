"""4-bit weights as AutoAWQ and AutoGPTQ pack them, eight to an int32 word, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Reads a tensor by its name.
Read = Callable[[str], Any]

#: AutoAWQ's order of eight neighbours in a word, the lowest bits first (awq/modules/linear/gemm.py).
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def nibbles(words: Any) -> Any:
    """The 4-bit integers 0 to 15 of int32 words [rows, n], eight a word, the lowest bits first: [rows, 8 n]."""
    import torch

    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 0xF).reshape(words.shape[0], -1)


def awq_weight(read: Read, layer: str) -> Any:
    """A layer of AutoAWQ (version ``gemm``): (code − zero point) × scale, float32 [outputs, inputs].

    Codes lie as [inputs, outputs / 8], zero points as [groups, outputs / 8], scales as [groups, outputs].
    """
    codes, points = (_awq_order(nibbles(read(f"{layer}.{part}"))) for part in ("qweight", "qzeros"))
    scales = read(f"{layer}.scales").float()
    size = codes.shape[0] // scales.shape[0]
    spread_points, spread_scales = (values.repeat_interleave(size, dim=0) for values in (points, scales))
    return ((codes - spread_points).float() * spread_scales).T.contiguous()


def _awq_order(stored: Any) -> Any:
    """Columns as the layer has them."""
    inverse = [_AWQ_ORDER.index(place) for place in range(8)]
    return stored.reshape(stored.shape[0], -1, 8)[:, :, inverse].reshape(stored.shape[0], -1)


def gptq_weight(read: Read, layer: str) -> Any:
    """A layer of AutoGPTQ: (code − (zero point + 1)) × scale, float32 [outputs, inputs].

    Codes lie as [inputs / 8, outputs], zero points less one as [groups, outputs / 8], scales as [groups, outputs];
    ``g_idx`` names the group of each input (auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, ``pack``).
    """
    codes = nibbles(read(f"{layer}.qweight").T.contiguous()).float()
    points = nibbles(read(f"{layer}.qzeros")).float() + 1
    groups = read(f"{layer}.g_idx").long()
    return (codes - points[groups].T) * read(f"{layer}.scales").float()[groups].T


#: ``quant_method`` in config.json → how a layer's weights are restored.
PACKED: Mapping[str, Callable[[Read, str], Any]] = {"awq": awq_weight, "gptq": gptq_weight}
