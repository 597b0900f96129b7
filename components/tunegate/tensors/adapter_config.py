"""PEFT's ``adapter_config.json``: refused by name when it says what no merge here computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import read_json_object

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

LORA, ADALORA = "LORA", "ADALORA"

#: Settings of PEFT that the merge's mathematics honours, or that do not change it.
_HONOURED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip

#: Those that only one kind has. AdaLoRA's own rank is ``init_r``; it ignores ``r``, ``alpha_pattern``, ``use_rslora``.
_HONOURED_OF: Mapping[str, frozenset[str]] = {
    LORA: frozenset({"use_dora", "lora_bias"}),
    ADALORA: frozenset({
        "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    }),
}  # fmt: skip

#: What an option may be besides absent, null, false or empty. Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, …)
#: change the base's weights when they start, so their adapters fit that changed base alone.
_PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {"init_lora_weights": (True, "gaussian", "orthogonal")}

#: Whose biases were trained.
_BIASES = ("none", "all", "lora_only")


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``, refused when it is of a kind or has an option whose merge is not implemented.

    Raises:
        AdapterError: when it is absent, neither LoRA nor AdaLoRA, or says what cannot be merged exactly; names it.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config = read_json_object(path)
        if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
            raise ValueError("no numbers r and lora_alpha")
        if config.get("peft_type") == ADALORA:
            _check_adalora(config)
    except ValueError as error:
        raise AdapterError(
            f"{adapter} is no adapter.",
            seen=f"{path.name}: {error}",
            expected=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in PEFT's format",
            remedy="check the adapter's path",
        ) from error
    if wrong := _not_honoured(config):
        raise AdapterError(
            f"The adapter in {adapter} cannot be merged exactly.",
            seen=", ".join(wrong),
            expected="LoRA (patterns, rsLoRA, DoRA, biases and modules_to_save included), or AdaLoRA",
            remedy="train without these options",
            items=wrong,
        )
    return config


def _not_honoured(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("peft_type")
    wrong = [] if kind in _HONOURED_OF else [f"peft_type: {kind}"]
    honoured = _HONOURED | _HONOURED_OF.get(str(kind), frozenset())
    wrong += [f"{name}: {value}" for name, value in config.items() if name not in honoured and not _is_off(name, value)]
    if (config.get("bias") or "none") not in _BIASES:
        wrong.append(f"bias: {config['bias']}")
    if config.get("lora_bias"):  # PEFT refuses the first itself; the second would train one bias twice
        wrong += ["lora_bias with use_dora"] if config.get("use_dora") else []
        wrong += [f"lora_bias with bias: {config['bias']}"] if (config.get("bias") or "none") != "none" else []
    return wrong


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


def stated_rank(config: Mapping[str, Any], module: str) -> Any:
    """The rank that the configuration gives a module: a number of LoRA, AdaLoRA's kept singular values counted."""
    pattern = config.get("rank_pattern") or {}
    if config["peft_type"] == ADALORA:
        kept = pattern.get(f"{module}.lora_E")
        return config["init_r"] if kept is None else sum(kept)
    return pattern_value(pattern, module, config["r"])


def pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name, with PEFT's own matching rule."""
    if not patterns:
        return default  # and PEFT, which takes seconds to import, is not
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(list(patterns), module), default)
