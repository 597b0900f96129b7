"""LoRA's algebra on adapter files: which pair belongs to which weight, and what it adds (arXiv:2106.09685)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.tensors.shards import TensorSpec, read_specs

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PEFT_PREFIX = "base_model.model."
_PAIR_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<half>A|B)\.weight$")

#: Settings of PEFT that change the mathematics, with the values that leave it as this module computes it.
_PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "eva_config": (None,),
    "corda_config": (None,),
    # PiSSA, OLoRA, CorDA and LoftQ change the base's weights when they start; their adapters fit that base alone.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}


@dataclass(frozen=True)
class LoraPair:
    """One adapted module: ``ΔW = scaling · B·A``.

    Attributes:
        module: its name in the base, for example ``model.layers.0.self_attn.q_proj``.
        rank: r of this module.
        scaling: alpha/r, or alpha/sqrt(r) with rsLoRA.
        a, b: the tensors' names in the adapter file, ``A: r × in``, ``B: out × r``.
        shape: (out, in).
    """

    module: str
    rank: int
    scaling: float
    a: str
    b: str
    shape: tuple[int, int]

    @property
    def weight(self) -> str:
        """The base tensor that the pair changes."""
        return f"{self.module}.weight"


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``, refused when it holds what is not plain LoRA.

    Raises:
        AdapterError: when it is absent, no LoRA, or uses an option whose merge is not implemented.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{adapter} is no adapter.",
            seen=f"{path.name}: {error}",
            expected=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in PEFT's format",
            remedy="check the adapter's path",
        ) from error
    wrong = [] if config.get("peft_type") == "LORA" else [f"peft_type: {config.get('peft_type')}"]
    wrong += [f"{k}: {config[k]}" for k, plain in _PLAIN_VALUES.items() if k in config and config[k] not in plain]
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} cannot be merged exactly.",
            seen=", ".join(wrong),
            expected="a plain LoRA adapter (rank and alpha patterns and rsLoRA included)",
            remedy="train without these options",
            items=wrong,
        )
    return config


def read_pairs(adapter: Path, base: Mapping[str, TensorSpec]) -> dict[str, LoraPair]:
    """Every LoRA pair of an adapter by the base tensor it changes; each key of the adapter file is accounted for.

    Args:
        adapter: a folder in PEFT's format.
        base: the base model's tensors.

    Raises:
        AdapterError: for pickled weights, an unknown key, half a pair, a module that the base lacks, or a shape or rank
            that differs.
    """
    config = read_adapter_config(adapter)
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file():
        raise AdapterError(
            f"{adapter} has no {ADAPTER_WEIGHTS}.",
            seen=", ".join(sorted(p.name for p in adapter.iterdir())),
            expected="safetensors; pickled adapters can run code and are never loaded",
            remedy="save the adapter with save_pretrained(safe_serialization=True)",
        )
    specs = read_specs(path)
    halves: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in specs:
        match = _PAIR_KEY.match(key)
        if match is None or not key.startswith(_PEFT_PREFIX):
            unknown.append(f"{key}: not a LoRA pair of a linear module")
            continue
        halves.setdefault(match["module"].removeprefix(_PEFT_PREFIX), {})[match["half"]] = key
    pairs: dict[str, LoraPair] = {}
    for module, found in sorted(halves.items()):
        if found.keys() != {"A", "B"}:
            unknown.append(f"{module}: only lora_{next(iter(found))} is there")
        elif f"{module}.weight" not in base:
            unknown.append(f"{module}: the base has no {module}.weight")
        else:
            pair = _pair(module, specs[found["A"]], specs[found["B"]], found, config)
            pairs[pair.weight] = pair
    _refuse_misfits(adapter, unknown, pairs, base, specs)
    return pairs


def _pair(module: str, a: TensorSpec, b: TensorSpec, keys: Mapping[str, str], config: Mapping[str, Any]) -> LoraPair:
    rank = a.shape[0]
    alpha = _pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(module, rank, scaling, keys["A"], keys["B"], (b.shape[0], a.shape[1]))


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name, with PEFT's own matching rule."""
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(list(patterns), module), default)


def _refuse_misfits(
    adapter: Path,
    unknown: list[str],
    pairs: Mapping[str, LoraPair],
    base: Mapping[str, TensorSpec],
    specs: Mapping[str, TensorSpec],
) -> None:
    if unknown or not pairs:
        raise AdapterError(
            f"The adapter in {adapter} holds keys that would be left unused.",
            seen=f"{len(unknown)} unused of {len(specs)} keys, {len(pairs)} pairs that fit",
            expected="every key to be half of a LoRA pair of a linear module that the base has",
            remedy="use the base that the adapter was trained on, and adapt linear modules only",
            items=unknown,
        )
    config = read_adapter_config(adapter)
    wrong = []
    for weight, pair in pairs.items():
        stated = _pattern_value(config.get("rank_pattern") or {}, pair.module, config["r"])
        b_rank = specs[pair.b].shape[1]
        if base[weight].shape != pair.shape:
            wrong.append(f"{weight}: base {base[weight].shape}, adapter {pair.shape}")
        elif not pair.rank == b_rank == stated:
            wrong.append(f"{weight}: rank {stated} in the configuration, {pair.rank} in A, {b_rank} in B")
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} does not fit this base.",
            seen=f"{len(wrong)} of {len(pairs)} shapes differ",
            expected="the shapes of the base's weights",
            remedy="use the base that the adapter was trained on",
            items=wrong,
        )


def delta_rows(a: Any, b: Any, scaling: float, rows: slice) -> Any:
    """Rows of ``ΔW = scaling · B·A`` in float32: A ``r × in``, B ``out × r`` → ``rows × in``."""
    import torch

    return (b[rows].to(torch.float32) @ a.to(torch.float32)) * scaling
