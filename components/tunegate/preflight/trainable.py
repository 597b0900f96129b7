"""The tensors that train: their sizes decide gradients, optimizer states, and what a paged optimizer can move out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.preflight.model_shape import Linear, ModelShape
from tunegate.preflight.precision import ADAPTERS

#: PEFT's word for every linear module but the output head.
ALL_LINEAR = "all-linear"
_HEAD = "lm_head"


@dataclass(frozen=True)
class Tensors:
    """``count`` tensors of ``numel`` elements each; ``embedding`` ones keep 32-bit states in an 8-bit optimizer."""

    numel: int
    count: int
    embedding: bool = False

    @property
    def elements(self) -> int:
        """All elements of all of them."""
        return self.numel * self.count


def adapted_linears(shape: ModelShape, train: Mapping[str, Any]) -> tuple[Linear, ...]:
    """The linear modules of a layer that get an adapter; none when the method trains every weight.

    Raises:
        SettingsError: for a target that the model does not have.
    """
    targets = tuple(train["target_modules"])
    if train["method"] not in ADAPTERS:
        return ()
    if targets == (ALL_LINEAR,):
        return shape.linears
    known = {linear.name for linear in shape.linears} | (set() if shape.tied else {_HEAD})
    names = [target.rpartition(".")[2] for target in targets]
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(
            "target_modules names modules that the model does not have.",
            seen=", ".join(unknown),
            expected=f"of {', '.join(sorted(known))}",
            remedy=f"correct the names, or use ['{ALL_LINEAR}']",
        )
    return tuple(linear for linear in shape.linears if linear.name in names)


def rank(train: Mapping[str, Any]) -> int:
    """The rank that every adapted module is held at: AdaLoRA keeps its first rank until it is saved."""
    return int(train["init_r"] if train["method"] == "adalora" else train["r"])


def trainable_tensors(shape: ModelShape, train: Mapping[str, Any]) -> tuple[Tensors, ...]:
    """Every tensor that trains, those of equal size together."""
    if train["method"] not in ADAPTERS:
        return _every_weight(shape)
    r, layers = rank(train), shape.num_hidden_layers
    linears = adapted_linears(shape, train)
    found = [Tensors(r * linear.inputs, layers) for linear in linears]
    found += [Tensors(r * linear.outputs, layers) for linear in linears]
    if any(target.rpartition(".")[2] == _HEAD for target in train["target_modules"]):
        found += [Tensors(r * shape.hidden_size, 1), Tensors(r * shape.vocab_size, 1)]
    if train["method"] == "adalora":
        found.append(Tensors(r, layers * len(linears)))
    return tuple(found)


def _every_weight(shape: ModelShape) -> tuple[Tensors, ...]:
    layers = shape.num_hidden_layers
    found = [Tensors(shape.embedding_weights, 1, embedding=True)]
    if not shape.tied:
        found.append(Tensors(shape.embedding_weights, 1))
    found += [Tensors(linear.weights, layers) for linear in shape.linears]
    found += [Tensors(length, layers) for length in shape.layer_vectors]
    return (*found, Tensors(shape.hidden_size, 1))


def elements(tensors: Sequence[Tensors]) -> int:
    """How many parameters train."""
    return sum(group.elements for group in tensors)
