"""The merge page: how far each weight moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.merge.weights import MergedModule
from tunegate.pages.charts import histogram, line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table
from tunegate.tensors.tuned import TensorChange

_CHANGED = "Changed: share of the elements that differ after the one cast to the output's dtype."


def merge_page(
    summary: Mapping[str, object], modules: Sequence[MergedModule], measured: Mapping[str, Any] | None = None
) -> str:
    """How much of each weight changed, in the order of the model; and how the base was chosen, when by measurement."""
    rows = [(m.weight, m.rank, m.relative_change, _share(m)) for m in modules]
    listed = Section("Every pair", table(["weight", "rank", "‖ΔW‖ / ‖W‖", "changed"], rows), _CHANGED)
    chosen = _measurement(measured) if measured else []
    sections = [Section("The merge", facts(summary)), *chosen, *_curves(modules), listed]
    return page("Merge", sections, subtitle="W = W0 + (alpha / r) · B · A, added in float32 and cast once")


def full_page(summary: Mapping[str, object], changes: Sequence[TensorChange]) -> str:
    """How much of each weight full fine-tuning changed, in the order of the model."""
    rows = [(c.weight, c.relative_change, _share(c)) for c in changes]
    listed = Section("Every tensor", table(["weight", "‖ΔW‖ / ‖W‖", "changed"], rows), _CHANGED)
    sections = [Section("The weights", facts(summary)), *_curves(changes), listed]
    return page(
        "Merge", sections, subtitle="full fine-tuning: the tuned weights, cast once; there is no adapter to add"
    )


def _measurement(measured: Mapping[str, Any]) -> list[Section]:
    """Both merges on the same held-out rows: what decided, and what is only reported."""
    kl = measured["mean_kl_from_adapter"]
    rows = [
        (kind, loss, kl[kind], "kept" if kind == measured["chosen"] else "") for kind, loss in measured["loss"].items()
    ]
    found = {
        "original is better by": measured["difference"],
        "at least": "unknown" if measured["lower"] is None else measured["lower"],
        "confidence": f"{measured['confidence']:.0%}",
        "rows": measured["rows"],
        "tokens": measured["scored_tokens"],
    }
    differences = [row["dequantized"] - row["original"] for row in measured["row_losses"]]
    return [
        Section(
            "Which base",
            facts(found) + table(["base", "loss, nats a token", "KL from the adapter on its NF4 base", ""], rows),
            "Loss on validation rows, which were not trained on. The original weights are taken only when their loss "
            "is shown to be lower; the divergence decides nothing.",
        ),
        Section(
            "Difference of each row",
            histogram({"loss(dequantized) − loss(original)": differences}, x="nats a token"),
            "Right of 0 the original weights are better.",
        ),
    ]


def _share(change: MergedModule | TensorChange) -> str:
    return f"{change.changed / max(change.elements, 1):.1%}"


def _curves(changes: Sequence[MergedModule] | Sequence[TensorChange]) -> list[Section]:
    """Charts of the tensors in the layers, few enough curves in each to tell them apart."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for change in changes:
        kind, layer = _kind_and_layer(change.weight)
        if layer is not None:
            points = charts.setdefault(_chart(kind), {}).setdefault(kind, [])
            points.append((float(layer), change.relative_change))
    curves = {name: {kind: sorted(lines[kind]) for kind in sorted(lines)} for name, lines in sorted(charts.items())}
    return [Section(name, line_chart(lines, x="layer", y="‖ΔW‖ / ‖W‖")) for name, lines in curves.items()]


def _chart(kind: str) -> str:
    if kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
        return "Attention"
    if kind.endswith(".bias"):
        return "Biases"
    return "Normalization" if "norm" in kind else "Other modules"


def _kind_and_layer(tensor: str) -> tuple[str, int | None]:
    """``model.layers.3.self_attn.q_proj.weight`` → q_proj and 3; None for what is in no layer."""
    parts = tensor.removesuffix(".weight").split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    kind = ".".join(parts[-2:]) if parts[-1] == "bias" else parts[-1]
    return kind, numbers[0] if numbers else None
