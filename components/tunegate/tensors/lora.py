"""LoRA's algebra on adapter files: which pair belongs to which weight, and what it adds (arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import read_json_object
from tunegate.tensors.shards import TensorSpec, read_specs

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PEFT_PREFIX = "base_model.model."
_PAIR_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<half>A|B)\.weight$")

#: Settings of PEFT that this module's mathematics honours, or that do not change it.
_HONOURED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora", "ensure_weight_tying", "loftq_config", "qalora_group_size",
})  # fmt: skip

#: What an option may be besides absent, null, false or empty. Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, …)
#: change the base's weights when they start, so their adapters fit that changed base alone.
_PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),
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
        config = read_json_object(path)
        if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
            raise ValueError("no numbers r and lora_alpha")
    except ValueError as error:
        raise AdapterError(
            f"{adapter} is no adapter.",
            seen=f"{path.name}: {error}",
            expected=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in PEFT's format",
            remedy="check the adapter's path",
        ) from error
    wrong = [] if config.get("peft_type") == "LORA" else [f"peft_type: {config.get('peft_type')}"]
    wrong += [f"{name}: {value}" for name, value in config.items() if not _is_plain(name, value)]
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} cannot be merged exactly.",
            seen=", ".join(wrong),
            expected="a plain LoRA adapter (rank and alpha patterns and rsLoRA included)",
            remedy="train without these options",
            items=wrong,
        )
    return config


def _is_plain(name: str, value: Any) -> bool:
    """Whether an option leaves the merge as it is computed here; an option that is not known must be off."""
    return name in _HONOURED or not value or value in _PLAIN_VALUES.get(name, ())


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
        elif not _are_matrices(specs[found["A"]], specs[found["B"]]):
            unknown.append(f"{module}: A {specs[found['A']].shape} and B {specs[found['B']].shape} make no update")
        elif f"{module}.weight" not in base:
            unknown.append(f"{module}: the base has no {module}.weight")
        else:
            pair = _pair(module, specs[found["A"]], specs[found["B"]], found, config)
            pairs[pair.weight] = pair
    _refuse_misfits(adapter, unknown, pairs, base, specs)
    return pairs


def _are_matrices(a: TensorSpec, b: TensorSpec) -> bool:
    return len(a.shape) == len(b.shape) == 2 and min(*a.shape, *b.shape) > 0


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
