"""The keys of an adapter's file: which module each belongs to, and what it is there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tunegate.tensors.adapter_config import ADALORA, LORA, pattern_value
from tunegate.tensors.lora import LoraPair
from tunegate.tensors.shards import TensorSpec

_PEFT_PREFIX = "base_model.model."

#: What a key of PEFT's file ends with, after the module's name.
_PARTS = {
    LORA: r"lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|base_layer\.weight|base_layer\.bias",
    ADALORA: r"lora_A|lora_B|lora_E|base_layer\.weight|base_layer\.bias",
}
_KEYS = {kind: re.compile(rf"^(?P<module>.+)\.(?P<part>{parts})$") for kind, parts in _PARTS.items()}

#: The factors that a module has, by kind: A first, then B.
_FACTORS = {
    LORA: (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")),
    ADALORA: (("lora_A", "lora_B", "lora_E"),),
}

#: Of a division by a rank that may have become 0: PEFT's AdaLoRA adds it to every rank.
_ADALORA_EPSILON = 1e-5


class AdapterKeys:
    """The keys of an adapter's file, sorted by what they are for.

    Attributes:
        modules: module → which factor → its key.
        replaced: tensor of the base → the key of what was trained in its place.
        shifts: module → the key of LoRA's own bias.
        copies: tensor of the base → the key of the adapter's copy.
        unknown: what is none of them, with the reason.
    """

    def __init__(self, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
        self.config, self.specs, self.kind = config, specs, str(config["peft_type"])
        self.modules: dict[str, dict[str, str]] = {}
        self.replaced: dict[str, str] = {}
        self.shifts: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.unknown: list[str] = []
        self._saved = tuple(config.get("modules_to_save") or ())
        self._biases = (config.get("bias") or "none") != "none"
        for key in specs:
            self._sort(key)

    def _sort(self, key: str) -> None:
        name = key.removeprefix(_PEFT_PREFIX)
        match = _KEYS[self.kind].match(name)
        module, part = (match["module"], match["part"]) if match else (name.rpartition(".")[0], "")
        if not key.startswith(_PEFT_PREFIX):
            self.unknown.append(f"{key}: not a key of PEFT")
        elif part == "base_layer.weight":
            self.copies[f"{module}.weight"] = key
        elif part == "lora_B.bias" and self.config.get("lora_bias"):
            self.shifts[module] = key
        elif self._biases and (part == "base_layer.bias" or (not part and name.endswith(".bias"))):
            self.replaced[f"{module}.bias"] = key
        elif not part and any(re.search(rf"{re.escape(saved)}(\.|$)", module) for saved in self._saved):
            self.replaced[name] = key
        elif not part and name.endswith(".weight"):
            self.copies[name] = key  # embeddings that PEFT saved because it was asked to, or the vocabulary grew
        elif part and not part.endswith("bias"):
            self.modules.setdefault(module, {})[part] = key
        else:
            self.unknown.append(f"{key}: not a factor of a module, and nothing that the configuration says was trained")

    def pairs(self, base: Mapping[str, TensorSpec], stored_by_input: frozenset[str]) -> dict[str, LoraPair]:
        """Base tensor → its pair; what makes none is unknown."""
        pairs: dict[str, LoraPair] = {}
        for module, parts in sorted(self.modules.items()):
            factors = next((f for f in _FACTORS[self.kind] if parts.keys() == {*f, *self._magnitude()}), None)
            if factors is None:
                self.unknown.append(f"{module}: only {', '.join(sorted(parts))} is there")
                continue
            a, b = (self.specs[parts[name]] for name in factors[:2])
            if not _are_matrices(a, b, least_rank=int(self.kind != ADALORA)):
                self.unknown.append(f"{module}: A {a.shape} and B {b.shape} make no update")
            elif f"{module}.weight" not in base:
                self.unknown.append(f"{module}: the base has no {module}.weight")
            else:
                pair = self._pair(module, parts, factors, module in stored_by_input)
                pairs[pair.weight] = pair
        return pairs

    def _magnitude(self) -> tuple[str, ...]:
        return ("lora_magnitude_vector",) if self.config.get("use_dora") else ()

    def _pair(self, module: str, parts: Mapping[str, str], factors: tuple[str, ...], stored_by_input: bool) -> LoraPair:
        a, b = (self.specs[parts[name]] for name in factors[:2])
        embedding = factors[0] == "lora_embedding_A"
        return LoraPair(
            module=module,
            rank=a.shape[0],
            scaling=self._scaling(module, a.shape[0]),
            a=parts[factors[0]],
            b=parts[factors[1]],
            shape=(b.shape[0], a.shape[1]),
            e=parts.get("lora_E"),
            magnitude=parts.get("lora_magnitude_vector"),
            stored_by_input=stored_by_input or embedding,
            embedding=embedding,
        )

    def _scaling(self, module: str, rank: int) -> float:
        if self.kind == ADALORA:
            return float(self.config["lora_alpha"] / (self.config["init_r"] + _ADALORA_EPSILON))
        alpha = pattern_value(self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)


def _are_matrices(a: TensorSpec, b: TensorSpec, *, least_rank: int) -> bool:
    if not len(a.shape) == len(b.shape) == 2:
        return False
    return min(a.shape[1], b.shape[0]) > 0 and min(a.shape[0], b.shape[1]) >= least_rank
