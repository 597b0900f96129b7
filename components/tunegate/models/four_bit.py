"""A base held in 4-bit NF4 (QLoRA, arXiv:2305.14314): loading it, and saying how it is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.models.load import compute_dtype, load_causal_lm
from tunegate.models.nf4_kernel import refuse_wrong_kernel


@dataclass(frozen=True)
class FourBit:
    """How the base was held in 4 bits while the adapter was trained on it; the merge reproduces exactly this.

    Attributes:
        quant_type: ``nf4``.
        double_quant: whether the block scales were quantized as well.
        block_size: weights that share one scale.
        weight_dtype: the dtype from which the weights were quantized, and to which they were dequantized.
        modules: the names of the modules that were 4-bit, and no others.
    """

    quant_type: str
    double_quant: bool
    block_size: int
    weight_dtype: str
    modules: tuple[str, ...]


def load_four_bit(folder: Path, *, dtype: str, quant_type: str, double_quant: bool) -> Any:
    """A base with its linear modules in 4 bits, as transformers and bitsandbytes choose them.

    Args:
        folder: the 16-bit base.
        dtype: what the weights are quantized from and computed in, as in :func:`~tunegate.models.load.load_causal_lm`.
        quant_type: ``nf4``.
        double_quant: whether the block scales are quantized as well.

    Returns:
        the model, whose 4-bit weights stay as they were quantized, whatever is computed with them.
    """
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype(dtype),
    )
    model = load_causal_lm(folder, dtype=dtype, quantization=quantization)
    held = _linear_4bit(model)
    _keep_canonical(held)
    _refuse_wrong_kernel(held, str(compute_dtype(dtype)).removeprefix("torch."))
    return model


def _linear_4bit(model: Any) -> dict[str, Any]:
    """The modules that are in 4 bits, by name."""
    import bitsandbytes

    return {name: m for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def _refuse_wrong_kernel(held: Mapping[str, Any], dtype: str) -> None:
    inputs = {name: module.in_features for name, module in held.items() if module.weight.device.type == "cpu"}
    if inputs:
        block_size = next(iter(held.values())).weight.quant_state.blocksize
        refuse_wrong_kernel(inputs, block_size=block_size, weight_dtype=dtype)


def _keep_canonical(held: Mapping[str, Any]) -> None:
    """Keeps bitsandbytes from packing 4-bit weights anew at the first forward pass in evaluation.

    Where a CPU has AVX512-BF16, ``Linear4bit.forward`` of bitsandbytes 0.50 (``nn/modules.py``) then rounds the scales
    to bfloat16, for good, and computes with a kernel that has no gradient (``matmul_4bit`` in
    ``autograd/_functions.py``), in training as well: a run that validates first would train its last layers alone, on
    other weights than it recorded. Measured on SmolLM2-135M: the training loss stays at 1.6, where it falls to 0.2.
    """
    for module in held.values():
        module.support_avx512bf16_for_cpu = False


def four_bit(model: Any) -> FourBit | None:
    """How ``model`` holds its base in 4 bits, or None when it does not."""
    found = _linear_4bit(model)
    if not found:
        return None
    state = next(iter(found.values())).weight.quant_state
    return FourBit(
        quant_type=state.quant_type,
        double_quant=bool(state.nested),
        block_size=int(state.blocksize),
        weight_dtype=str(state.dtype).removeprefix("torch."),
        modules=tuple(sorted(found)),
    )


def four_bit_document(found: FourBit | None) -> dict[str, Any] | None:
    """As plain JSON types for ``training.json``."""
    return None if found is None else {**asdict(found), "modules": list(found.modules)}
