"""LoRA's algebra on adapter files: which pair belongs to which weight, and what it adds (arXiv:2106.09685).

AdaLoRA's triplets (arXiv:2303.10512) are pairs as well: ``P·Λ·Q = B·(E·A)``, where E scales the rows of A.
"""

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

#: PEFT's kinds of adapter that are merged → how their tensors are named, and which a module has.
_KEYS: Mapping[str, tuple[re.Pattern[str], frozenset[str]]] = {
    "LORA": (re.compile(r"^(?P<module>.+)\.lora_(?P<factor>A|B)\.weight$"), frozenset("AB")),
    "ADALORA": (re.compile(r"^(?P<module>.+)\.lora_(?P<factor>A|B|E)$"), frozenset("ABE")),
}

#: Of a division by a rank that may have become 0: PEFT's AdaLoRA adds it to every rank.
_ADALORA_EPSILON = 1e-5

#: Settings of PEFT that this module's mathematics honours, or that do not change it.
_HONOURED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora", "ensure_weight_tying", "loftq_config", "qalora_group_size",
})  # fmt: skip

#: Those that only AdaLoRA has. Its own rank is ``init_r``; it ignores ``r``, ``alpha_pattern`` and ``use_rslora``.
_HONOURED_OF_ADALORA = frozenset({
    "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
})  # fmt: skip

#: What an option may be besides absent, null, false or empty. Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, …)
#: change the base's weights when they start, so their adapters fit that changed base alone.
_PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),
}


@dataclass(frozen=True)
class LoraPair:
    """One adapted module: ``ΔW = scaling · B·A``, or ``scaling · B·(E·A)`` of AdaLoRA.

    Attributes:
        module: its name in the base, for example ``model.layers.0.self_attn.q_proj``.
        rank: r of this module; AdaLoRA may have left 0.
        scaling: alpha/r, or alpha/sqrt(r) with rsLoRA; alpha/init_r of AdaLoRA, whatever rank is left.
        a, b: the tensors' names in the adapter file, ``A: r × in``, ``B: out × r``.
        shape: (out, in).
        e: the name of AdaLoRA's singular values, ``E: r × 1``.
    """

    module: str
    rank: int
    scaling: float
    a: str
    b: str
    shape: tuple[int, int]
    e: str | None = None

    @property
    def weight(self) -> str:
        """The base tensor that the pair changes."""
        return f"{self.module}.weight"


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``, refused when it holds what is not plain LoRA or AdaLoRA.

    Raises:
        AdapterError: when it is absent, neither of them, or uses an option whose merge is not implemented.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config = read_json_object(path)
        if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
            raise ValueError("no numbers r and lora_alpha")
        if config.get("peft_type") == "ADALORA":
            _check_adalora(config)
    except ValueError as error:
        raise AdapterError(
            f"{adapter} is no adapter.",
            seen=f"{path.name}: {error}",
            expected=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in PEFT's format",
            remedy="check the adapter's path",
        ) from error
    kind = config.get("peft_type")
    wrong = [] if kind in _KEYS else [f"peft_type: {kind}"]
    honoured = _HONOURED | (_HONOURED_OF_ADALORA if kind == "ADALORA" else frozenset())
    wrong += [f"{name}: {value}" for name, value in config.items() if name not in honoured and not _is_off(name, value)]
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} cannot be merged exactly.",
            seen=", ".join(wrong),
            expected="a plain LoRA adapter (rank and alpha patterns and rsLoRA included), or one of AdaLoRA",
            remedy="train without these options",
            items=wrong,
        )
    return config


def _is_off(name: str, value: Any) -> bool:
    """Whether an option leaves the merge as it is computed here; an option that is not known must be off."""
    return not value or value in _PLAIN_VALUES.get(name, ())


def _check_adalora(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a configuration from which AdaLoRA's ranks and scaling cannot be known."""
    if not (isinstance(config.get("init_r"), int) and config["init_r"] > 0 and config["lora_alpha"] > 0):
        raise ValueError("no positive numbers init_r and lora_alpha")
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"rank_pattern is {type(pattern).__name__}")
    for name, kept in pattern.items():
        is_mask = isinstance(kept, list) and all(isinstance(value, bool) for value in kept)
        if not is_mask or len(kept) != config["init_r"]:
            raise ValueError(f"rank_pattern of {name} is not {config['init_r']} times true or false")


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
    key_form, factors = _KEYS[config["peft_type"]]
    modules: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in specs:
        match = key_form.match(key)
        if match is None or not key.startswith(_PEFT_PREFIX):
            unknown.append(f"{key}: not a factor of a linear module")
            continue
        modules.setdefault(match["module"].removeprefix(_PEFT_PREFIX), {})[match["factor"]] = key
    pairs: dict[str, LoraPair] = {}
    for module, found in sorted(modules.items()):
        if found.keys() != factors:
            unknown.append(f"{module}: only {', '.join(f'lora_{name}' for name in sorted(found))} is there")
        elif not _are_matrices(specs[found["A"]], specs[found["B"]], least_rank=int("E" not in factors)):
            unknown.append(f"{module}: A {specs[found['A']].shape} and B {specs[found['B']].shape} make no update")
        elif f"{module}.weight" not in base:
            unknown.append(f"{module}: the base has no {module}.weight")
        else:
            pair = _pair(module, specs[found["A"]], specs[found["B"]], found, config)
            pairs[pair.weight] = pair
    unknown += _unused_ranks(config, pairs)
    _refuse_misfits(adapter, unknown, pairs, base, specs)
    return pairs


def _are_matrices(a: TensorSpec, b: TensorSpec, *, least_rank: int) -> bool:
    if not len(a.shape) == len(b.shape) == 2:
        return False
    return min(a.shape[1], b.shape[0]) > 0 and min(a.shape[0], b.shape[1]) >= least_rank


def _pair(module: str, a: TensorSpec, b: TensorSpec, keys: Mapping[str, str], config: Mapping[str, Any]) -> LoraPair:
    rank, shape = a.shape[0], (b.shape[0], a.shape[1])
    if config["peft_type"] == "ADALORA":
        scaling = config["lora_alpha"] / (config["init_r"] + _ADALORA_EPSILON)
        return LoraPair(module, rank, scaling, keys["A"], keys["B"], shape, keys["E"])
    alpha = _pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(module, rank, scaling, keys["A"], keys["B"], shape)


def _stated_rank(config: Mapping[str, Any], module: str) -> Any:
    """The rank that the configuration gives a module: a number of LoRA, AdaLoRA's kept singular values counted."""
    pattern = config.get("rank_pattern") or {}
    if config["peft_type"] == "ADALORA":
        kept = pattern.get(f"{module}.lora_E")
        return config["init_r"] if kept is None else sum(kept)
    return _pattern_value(pattern, module, config["r"])


def _unused_ranks(config: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> list[str]:
    """AdaLoRA names every module in its ranks: those with a rank and no tensors. Nothing is left to store of rank 0."""
    if config["peft_type"] != "ADALORA":
        return []
    held = {f"{pair.module}.lora_E" for pair in pairs.values()}
    ranks = (config.get("rank_pattern") or {}).items()
    return [f"{name}: rank {sum(kept)} and no tensors" for name, kept in ranks if any(kept) and name not in held]


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
            expected="every key to be a factor of a linear module that the base has, and every factor to be there",
            remedy="use the base that the adapter was trained on, and adapt linear modules only",
            items=unknown,
        )
    config = read_adapter_config(adapter)
    wrong = []
    for weight, pair in pairs.items():
        stated = _stated_rank(config, pair.module)
        b_rank = specs[pair.b].shape[1]
        if base[weight].shape != pair.shape:
            wrong.append(f"{weight}: base {base[weight].shape}, adapter {pair.shape}")
        elif not pair.rank == b_rank == stated:
            wrong.append(f"{weight}: rank {stated} in the configuration, {pair.rank} in A, {b_rank} in B")
        elif pair.e and specs[pair.e].shape != (pair.rank, 1):
            wrong.append(f"{weight}: rank {pair.rank}, and singular values {specs[pair.e].shape}")
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} does not fit this base.",
            seen=f"{len(wrong)} of {len(pairs)} shapes differ",
            expected="the shapes of the base's weights",
            remedy="use the base that the adapter was trained on",
            items=wrong,
        )


def read_factors(tensors: Any, pair: LoraPair) -> tuple[Any, Any]:
    """A and B of a pair in float32, with AdaLoRA's singular values folded into A: ``A: r × in``, ``B: out × r``.

    Args:
        tensors: an open safetensors file of the adapter.
        pair: which of its tensors.
    """
    import torch

    a, b = (tensors.get_tensor(name).to(torch.float32) for name in (pair.a, pair.b))
    return (a if pair.e is None else a * tensors.get_tensor(pair.e).to(torch.float32)), b


def delta_rows(a: Any, b: Any, scaling: float, rows: slice) -> Any:
    """Rows of ``ΔW = scaling · B·A`` in float32: A ``r × in``, B ``out × r`` → ``rows × in``."""
    import torch

    return (b[rows].to(torch.float32) @ a.to(torch.float32)) * scaling
