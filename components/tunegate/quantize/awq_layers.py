"""Which layers AWQ rescales together: leaving out one of them would change the bytes of a layer that is to stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunegate.contracts.errors import SettingsError
from tunegate.quantize.layers import without_memory


def check_rescaled_whole(source: Path, layers: Sequence[str]) -> None:
    """Refuses a choice of layers that leaves out a matrix which AWQ rescales for the sake of one that it quantizes.

    The groups are llm-compressor's own for the architecture. ``v_proj`` is divided by what ``o_proj`` is multiplied
    by, and ``q_proj``, ``k_proj`` and ``v_proj`` are multiplied by one and the same scale.

    Args:
        source: the model folder.
        layers: the layers that are quantized.

    Raises:
        SettingsError: naming each such matrix, with the layers for which it would be rescaled.
    """
    if torn := _torn(source, frozenset(layers)):
        raise SettingsError(
            f"AWQ would rescale {len(torn)} layers that quantize.ignore leaves as they are.",
            seen=f"{', '.join(list(torn)[:3])}{', …' if len(torn) > 3 else ''} ignored, and what goes with them is not",
            expected="layers that AWQ rescales together either all quantized or all ignored",
            remedy="ignore what goes with these layers as well, or none of them, or set algorithm to gptq",
            items=[f"{name} goes with {', '.join(partners)}" for name, partners in torn.items()],
        )


def _torn(source: Path, layers: frozenset[str]) -> dict[str, list[str]]:
    """Matrix that is not quantized and would be rescaled → the quantized layers for whose sake."""
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

    model = without_memory(source)
    for name in layers:
        model.get_submodule(name).quantization_scheme = None  # by its being there the modifier knows what is quantized
    modifier = AWQModifier(mappings=get_layer_mappings_from_model(model))
    modifier._set_resolved_mappings(model)
    found: dict[str, list[str]] = {}
    for group in modifier._resolved_mappings:
        modules = {
            group.smooth_name: group.smooth_layer,
            **dict(zip(group.balance_names, group.balance_layers, strict=True)),
        }
        quantized = [name for name in modules if name in layers]
        for name, module in modules.items():
            if name not in layers and getattr(module, "weight", None) is not None and module.weight.ndim > 1:
                found.setdefault(name, []).extend(quantized)
    return {name: sorted(set(partners)) for name, partners in found.items()}
