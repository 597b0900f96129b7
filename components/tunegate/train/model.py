"""The model that is trained: a frozen base, in 16 bits or NF4, and the adapter on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.models.four_bit import load_four_bit
from tunegate.models.load import load_causal_lm
from tunegate.train.settings import TrainSettings

ALL_LINEAR = "all-linear"


def load_base(folder: Path, settings: TrainSettings) -> Any:
    """The base as the method wants it: in 16 bits, in NF4 (QLoRA, arXiv:2305.14314), or in float32 to be trained.

    Full fine-tuning holds float32 masters unless ``dtype`` says otherwise: AdamW's steps at its learning rates are
    smaller than what bfloat16 can add to a weight. On a GPU the computation is in bfloat16 all the same.
    """
    if settings.method == "full" and settings.dtype == "auto":
        return load_causal_lm(folder, dtype="float32")
    if settings.method != "qlora":
        return load_causal_lm(folder, dtype=settings.dtype)
    return load_four_bit(
        folder,
        dtype=settings.dtype,
        quant_type=settings.bnb_4bit_quant_type,
        double_quant=settings.bnb_4bit_use_double_quant,
    )


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
