"""An adapter's file held against its base: which tensor of the base becomes what; every key is accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tunegate.contracts.errors import AdapterError
from tunegate.tensors.adapter_config import ADALORA, ADAPTER_WEIGHTS, read_adapter_config, stated_rank
from tunegate.tensors.adapter_keys import AdapterKeys
from tunegate.tensors.lora import LoraPair
from tunegate.tensors.shards import TensorSpec, read_specs


class Architecture(Protocol):
    """What no file header says of a model; see :class:`tunegate.models.architecture.Architecture`."""

    @property
    def tied(self) -> Mapping[str, str]: ...

    @property
    def stored_by_input(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Changes:
    """What an adapter changes, by tensor of the base.

    Attributes:
        pairs: tensor → its pair of factors.
        replaced: tensor → the adapter's tensor that takes its place: a trained bias, or of ``modules_to_save``.
        shifted: bias → the adapter's tensor (``lora_bias``) that is added to it, times the scaling of its module.
        copies: tensor → the adapter's own copy of it, which PEFT saves with an adapted embedding and computes with.
        untied: tensor → the tensor whose values it shares in the base, where the adapter changes one of the two: from
            then on each has its own.
    """

    pairs: Mapping[str, LoraPair] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    shifted: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    untied: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> set[str]:
        """Every tensor that changes."""
        return {*self.pairs, *self.replaced, *self.shifted}


def read_changes(adapter: Path, base: Mapping[str, TensorSpec], architecture: Callable[[], Architecture]) -> Changes:
    """Everything that an adapter changes in its base.

    Args:
        adapter: a folder in PEFT's format.
        base: the base model's tensors.
        architecture: asked only where the base's headers leave something open: it takes seconds.

    Raises:
        AdapterError: for pickled weights, an unknown key, half a pair, a module that the base lacks, or a shape or rank
            that differs.
    """
    config = read_adapter_config(adapter)
    specs = _adapter_specs(adapter)
    found = AdapterKeys(config, specs)
    untied = _untied(found, base, architecture)
    known = {**base, **{tensor: base[source] for tensor, source in untied.items() if source in base}}
    by_input = architecture().stored_by_input if _has_conv1d(base) else frozenset()
    pairs = found.pairs(known, by_input)
    scalings = {pair.module: pair.scaling for pair in pairs.values()}
    shifted = {f"{module}.bias": (key, scalings[module]) for module, key in found.shifts.items() if module in scalings}
    found.unknown += [f"{module}: only lora_B.bias is there" for module in found.shifts.keys() - scalings.keys()]
    changes = Changes(pairs, found.replaced, shifted, _shared(found.copies, untied), untied)
    _refuse_unused(adapter, found, changes, known)
    _refuse_misfits(adapter, found, changes, known)
    return changes


def _adapter_specs(adapter: Path) -> dict[str, TensorSpec]:
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file():
        raise AdapterError(
            f"{adapter} has no {ADAPTER_WEIGHTS}.",
            seen=", ".join(sorted(p.name for p in adapter.iterdir())),
            expected="safetensors; pickled adapters can run code and are never loaded",
            remedy="save the adapter with save_pretrained(safe_serialization=True)",
        )
    return read_specs(path)


def _has_conv1d(base: Mapping[str, TensorSpec]) -> bool:
    """Whether a weight of the base has the length of its bias at its end: then square ones may be stored so too."""
    for name, spec in base.items():
        bias = base.get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and len(spec.shape) == 2 and spec.shape[0] != bias.elements == spec.shape[1]:
            return True
    return False


def _untied(found: AdapterKeys, base: Mapping[str, Any], architecture: Callable[[], Architecture]) -> dict[str, str]:
    """The tied tensors of which the adapter changes one end: PEFT computes with an end of its own."""
    touched = {f"{module}.weight" for module in found.modules} | found.replaced.keys()
    if all(any(part.isdigit() for part in name.split(".")) for name in touched):
        return {}  # all of them lie in numbered layers: neither embeddings nor head
    return {
        head: source
        for head, source in architecture().tied.items()
        if {head, source} & touched and (head in base or source in base)
    }


def _shared(copies: Mapping[str, str], untied: Mapping[str, str]) -> dict[str, str]:
    """The copies, each for both ends of a tied tensor: PEFT loads it into the one that they share."""
    shared = dict(copies)
    for head, source in untied.items():
        if copy := copies.get(head) or copies.get(source):
            shared = {head: copy, source: copy, **shared}
    return shared


def _unused_ranks(config: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> list[str]:
    """AdaLoRA names every module in its ranks: those with a rank and no tensors. Nothing is left to store of rank 0."""
    if config["peft_type"] != ADALORA:
        return []
    held = {f"{pair.module}.lora_E" for pair in pairs.values()}
    ranks = (config.get("rank_pattern") or {}).items()
    return [f"{name}: rank {sum(kept)} and no tensors" for name, kept in ranks if any(kept) and name not in held]


def _refuse_unused(adapter: Path, found: AdapterKeys, changes: Changes, base: Mapping[str, Any]) -> None:
    unused = found.unknown + _unused_ranks(found.config, changes.pairs)
    unused += [f"{name}: trained twice" for name in sorted(changes.pairs.keys() & changes.replaced.keys())]
    unused += [
        f"{name}: the base has no such tensor"
        for name in sorted({*changes.replaced, *changes.shifted, *changes.copies} - base.keys())
    ]
    unused += [
        f"modules_to_save: {saved}, and no tensor of it"
        for saved in found.config.get("modules_to_save") or ()
        if not any(re.search(rf"{re.escape(saved)}\.", name) for name in changes.replaced)
    ]
    if unused or not changes.tensors:
        raise AdapterError(
            f"The adapter in {adapter} holds keys that would be left unused.",
            seen=f"{len(unused)} unused of {len(found.specs)} keys, {len(changes.pairs)} pairs that fit",
            expected="every key to belong to a module that the base has, every factor to be there",
            remedy="use the base that the adapter was trained on; what it has no place for, no merge can keep",
            items=unused,
        )


def _refuse_misfits(adapter: Path, found: AdapterKeys, changes: Changes, base: Mapping[str, TensorSpec]) -> None:
    specs = found.specs
    whole = {**changes.replaced, **changes.copies, **{name: key for name, (key, _) in changes.shifted.items()}}
    wrong = [
        f"{name}: base {base[name].shape}, adapter {specs[key].shape}"
        for name, key in whole.items()
        if base[name].shape != specs[key].shape
    ]
    for weight, pair in changes.pairs.items():
        stated, b_rank = stated_rank(found.config, pair.module), specs[pair.b].shape[1]
        if base[weight].shape != pair.stored_shape:
            wrong.append(f"{weight}: base {base[weight].shape}, adapter {pair.stored_shape}")
        elif not pair.rank == b_rank == stated:
            wrong.append(f"{weight}: rank {stated} in the configuration, {pair.rank} in A, {b_rank} in B")
        elif pair.e and specs[pair.e].shape != (pair.rank, 1):
            wrong.append(f"{weight}: rank {pair.rank}, and singular values {specs[pair.e].shape}")
        elif pair.magnitude and specs[pair.magnitude].elements != pair.shape[0]:
            wrong.append(f"{weight}: {pair.shape[0]} outputs, and magnitudes {specs[pair.magnitude].shape}")
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} does not fit this base.",
            seen=f"{len(wrong)} of {len(changes.tensors)} shapes differ",
            expected="the shapes of the base's weights",
            remedy="use the base that the adapter was trained on",
            items=wrong,
        )
