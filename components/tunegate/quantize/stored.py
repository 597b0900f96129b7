"""How quantized weights lie in a model's files, and what their codes stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.models.packed import PACKED, nibbles
from tunegate.quantize.layers import PLAIN_DTYPES
from tunegate.tensors.shards import TensorSpec

#: Tensor → the shard that it lies in, its dtype and shape.
Headers = Mapping[str, tuple[Path, TensorSpec]]

#: A signed 4-bit integer is stored with this offset.
_OFFSET = 8


@dataclass(frozen=True)
class Format:
    """A format of quantized weights.

    Attributes:
        quant_method: as ``quantization_config`` in config.json names it.
        parts: what the names of a quantized layer's tensors end with, behind the layer's own name.
        is_quantized: whether the headers hold a layer in this format.
        dequantized: a layer's weights, float32 [outputs, inputs], as its codes, scales and zero points say.
    """

    quant_method: str
    parts: tuple[str, ...]
    is_quantized: Callable[[Headers, str], bool]
    dequantized: Callable[[Headers, str], Any]

    def own(self, layers: tuple[str, ...]) -> set[str]:
        """Every name that a tensor of these layers can have."""
        return {f"{layer}.{part}" for layer in layers for part in self.parts}


def read_tensor(headers: Headers, name: str) -> Any:
    """One tensor of a folder whose headers were read."""
    from safetensors import safe_open

    with safe_open(headers[name][0], framework="pt") as file:
        return file.get_tensor(name)


def _is_compressed(headers: Headers, name: str) -> bool:
    coded = headers.get(f"{name}.weight") or headers.get(f"{name}.weight_packed")
    return coded is not None and coded[1].dtype not in PLAIN_DTYPES and f"{name}.weight_scale" in headers


def _compressed(headers: Headers, name: str) -> Any:
    """compressed-tensors: codes as they are or eight 4-bit ones a word; a scale for a layer, an output or a group."""
    scale = read_tensor(headers, f"{name}.weight_scale").float()
    if f"{name}.weight" in headers:
        codes = read_tensor(headers, f"{name}.weight").float()
    else:
        columns = int(read_tensor(headers, f"{name}.weight_shape")[1])
        codes = nibbles(read_tensor(headers, f"{name}.weight_packed"))[:, :columns].float() - _OFFSET
    if f"{name}.weight_zero_point" in headers:
        words = read_tensor(headers, f"{name}.weight_zero_point")
        points = nibbles(words.T.contiguous()).T[: codes.shape[0]].float() - _OFFSET
        codes = codes - _spread(points, codes)
    return codes * _spread(scale, codes)


def _spread(values: Any, codes: Any) -> Any:
    """What stands for a layer, an output or a group of inputs, at every code that it stands for."""
    return values if values.ndim == 1 else values.repeat_interleave(codes.shape[1] // values.shape[1], dim=1)


def _is_packed(headers: Headers, name: str) -> bool:
    return all(f"{name}.{part}" in headers for part in ("qweight", "qzeros", "scales"))


def _packed(method: str) -> Callable[[Headers, str], Any]:
    return lambda headers, name: PACKED[method](lambda tensor: read_tensor(headers, tensor), name)


COMPRESSED_TENSORS = Format(
    quant_method="compressed-tensors",
    parts=("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "input_scale"),
    is_quantized=_is_compressed,
    dequantized=_compressed,
)
AWQ_PACKED = Format(
    quant_method="awq",
    parts=("qweight", "qzeros", "scales"),
    is_quantized=_is_packed,
    dequantized=_packed("awq"),
)
GPTQ_PACKED = Format(
    quant_method="gptq",
    parts=("qweight", "qzeros", "scales", "g_idx"),
    is_quantized=_is_packed,
    dequantized=_packed("gptq"),
)
