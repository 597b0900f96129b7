"""The merge page: how far each weight moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunegate.merge.weights import MergedModule
from tunegate.pages.charts import line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table


def merge_page(summary: Mapping[str, object], modules: Sequence[MergedModule]) -> str:
    """How much of each weight changed, in the order of the model."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for module in modules:
        name, layer = _kind_and_layer(module.weight)
        kinds.setdefault(name, []).append((float(layer), module.relative_change))
    curves = {name: sorted(points) for name, points in sorted(kinds.items())}
    attention = {n: p for n, p in curves.items() if n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    others = {n: p for n, p in curves.items() if n not in attention}
    rows = [(m.weight, m.rank, m.relative_change, f"{m.changed / m.elements:.1%}") for m in modules]
    sections = [Section("The merge", facts(summary))]
    if attention:
        sections.append(Section("Attention", line_chart(attention, x="layer", y="‖ΔW‖ / ‖W‖")))
    if others:
        sections.append(Section("Other modules", line_chart(others, x="layer", y="‖ΔW‖ / ‖W‖")))
    note = "Changed: share of the elements that differ after the one cast to the output's dtype."
    sections.append(Section("Every pair", table(["weight", "rank", "‖ΔW‖ / ‖W‖", "changed"], rows), note))
    return page("Merge", sections, subtitle="W = W0 + (alpha / r) · B · A, added in float32 and cast once")


def _kind_and_layer(weight: str) -> tuple[str, int]:
    parts = weight.removesuffix(".weight").split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    return parts[-1], numbers[0] if numbers else 0
