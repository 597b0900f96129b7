"""The model that is trained: a frozen base, in 16 bits or NF4, and the adapter on it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.models.load import compute_dtype, load_causal_lm
from tunegate.train.settings import TrainSettings

ALL_LINEAR = "all-linear"


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


def load_base(folder: Path, settings: TrainSettings) -> Any:
    """The base as the method wants it: in 16 bits, in NF4 (QLoRA, arXiv:2305.14314), or in float32 to be trained.

    Full fine-tuning holds float32 masters unless ``dtype`` says otherwise: AdamW's steps at its learning rates are
    smaller than what bfloat16 can add to a weight. On a GPU the computation is in bfloat16 all the same.
    """
    if settings.method == "full" and settings.dtype == "auto":
        return load_causal_lm(folder, dtype="float32")
    if settings.method != "qlora":
        return load_causal_lm(folder, dtype=settings.dtype)
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=settings.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype(settings.dtype),
    )
    return load_causal_lm(folder, dtype=settings.dtype, quantization=quantization)


def lora_config(settings: TrainSettings) -> Any:
    """PEFT's configuration of the adapter (LoRA, arXiv:2106.09685)."""
    from peft import LoraConfig

    targets: Any = list(settings.target_modules)
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def refuse_unknown_targets(model: Any, settings: TrainSettings) -> None:
    """Refuses a target name that fits no linear module of the model.

    Raises:
        SettingsError: naming the targets and the linear modules that there are; PEFT only objects when none fits.
    """
    if tuple(settings.target_modules) == (ALL_LINEAR,):
        return
    import torch

    head = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    names = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]  # a tied head is the embedding: a linear adapter on it has no weight of its own to be merged into
    unknown = [
        target
        for target in settings.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    if unknown:
        raise SettingsError(
            "target_modules names modules that the base does not have.",
            seen=", ".join(unknown),
            expected="one of " + ", ".join(sorted({re.sub(r".*\.", "", name) for name in names})),
            remedy="correct the names, or use ['all-linear']",
        )


def four_bit(model: Any) -> FourBit | None:
    """How ``model`` holds its base in 4 bits, or None when it does not."""
    import bitsandbytes

    found = {name: m for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
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
