"""What a plan says of serving: which schemes fit which targets, which one ``auto`` takes, and what its weights take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.schemes import AUTO_SCHEME, SCHEMES
from tunegate.contracts.vllm import THIS_MACHINE
from tunegate.preflight.model_shape import ModelShape, model_shape
from tunegate.preflight.scheme_choice import SchemeFit, choose_scheme, fit_format, fit_scheme, quantized_widths
from tunegate.preflight.served_weights import plain_bytes, served_bytes
from tunegate.preflight.serving_targets import TARGETS, Target
from tunegate.preflight.this_machine import this_machine


@dataclass(frozen=True)
class Served:
    """One target, for one model.

    Attributes:
        target: the hardware.
        fits: what becomes of each scheme there.
        auto: the one that ``auto`` takes.
    """

    target: Target
    fits: tuple[SchemeFit, ...]
    auto: SchemeFit


@dataclass(frozen=True)
class ServingPlan:
    """Serving, for one model.

    Attributes:
        asked: the recipe's target, or this machine; empty when it is neither.
        scheme: the recipe's scheme.
        backend: what makes it; the targets' cells are about llmcompressor's format.
        targets: every target.
        weights: scheme → bytes of its weights; without those whose groups fit no layer.
        plain: bytes of the weights in 16 bits.
    """

    asked: str
    scheme: str
    backend: str
    targets: tuple[Served, ...]
    weights: Mapping[str, int]
    plain: int

    def of(self, name: str) -> Served | None:
        """What is said of a target."""
        return next((served for served in self.targets if served.target.name == name), None)

    @property
    def taken(self) -> SchemeFit | None:
        """What becomes of the recipe's scheme on its target."""
        served = self.of(self.asked)
        if served is None:
            return None
        if self.scheme == AUTO_SCHEME:
            return served.auto
        return fit_format(self.backend, next(fit for fit in served.fits if fit.scheme == self.scheme))

    def to_json(self) -> dict[str, Any]:
        """For scripts. Sizes are in bytes."""
        return {
            "serving_target": self.asked,
            "scheme": self.scheme,
            "taken": dataclasses.asdict(self.taken) if self.taken else None,
            "weights_bytes": {"unquantized": self.plain, **self.weights},
            "targets": [
                {
                    "name": served.target.name,
                    "about": served.target.about,
                    "auto": dataclasses.asdict(served.auto),
                    "schemes": [dataclasses.asdict(fit) for fit in served.fits],
                }
                for served in self.targets
            ],
        }


def serving_plan(config: Mapping[str, Any], quantize: Mapping[str, Any]) -> ServingPlan:
    """What can be served where.

    Args:
        config: the model's ``config.json``.
        quantize: every setting of ``quantize``.

    Raises:
        ModelError: for an architecture whose shapes are not known.
    """
    shape = model_shape(config)
    widths = quantized_widths(shape, quantize["ignore"])
    name = quantize["serving_target"]
    return ServingPlan(
        asked=this_machine().target if name == THIS_MACHINE else name,
        scheme=quantize["scheme"],
        backend=quantize["backend"],
        targets=tuple(_served(target, widths, quantize["group_size"]) for target in TARGETS.values()),
        weights=_weights(shape, widths, quantize["group_size"]),
        plain=plain_bytes(shape),
    )


def _served(target: Target, widths: Mapping[str, int], asked: int) -> Served:
    fits = [fit_scheme(name, target, widths, asked=asked) for name in SCHEMES]
    return Served(target, tuple(fits), choose_scheme(target, widths))


def _weights(shape: ModelShape, widths: Mapping[str, int], asked: int) -> dict[str, int]:
    found = {}
    for name, scheme in SCHEMES.items():
        sizes: Sequence[int] = [fit_scheme(name, target, widths, asked=asked).group_size for target in TARGETS.values()]
        if not scheme.grouped or max(sizes):
            found[name] = served_bytes(shape, name, group_size=max(sizes))
    return found
