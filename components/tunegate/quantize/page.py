"""The picture of a quantization: what it saved, and how far each layer's weights moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.pages.charts import histogram
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table

#: How many layers the table shows.
LAYERS_SHOWN = 15


def quantization_page(result: Mapping[str, Any]) -> str:
    """The page of one quantized model, from ``quantize.json``."""
    errors: Mapping[str, float] = {name: layer["relative_error"] for name, layer in result["layers"].items()}
    worst = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:LAYERS_SHOWN]
    rows = [(name, result["layers"][name]["inputs"], error) for name, error in worst]
    sections = [
        Section("In short", facts(_facts(result))),
        Section(
            "Relative error of each layer's weights",
            histogram({"layers": list(errors.values())}, x="‖W − Ŵ‖ / ‖W‖"),
            "What counts is what the model answers: the evaluation compares it with the merged model row by row.",
        ),
        Section(f"The {len(rows)} layers that moved most", table(("layer", "inputs", "relative error"), rows)),
    ]
    if serving := result["serving"]:
        sections.insert(1, Section("Where it is served", paragraph(f"{serving['reason']} ({serving['source']}).")))
    return page("Quantization", sections, subtitle=f"{result['scheme']} of model {result['model_digest'][:12]}")


def _facts(result: Mapping[str, Any]) -> dict[str, object]:
    shown: dict[str, object] = {
        "scheme": result["scheme"],
        "made by": f"{result['backend']}, {result['algorithm']}",
        "before": f"{result['bytes_before'] / 1e6:,.1f} MB",
        "after": f"{result['bytes_after'] / 1e6:,.1f} MB",
        "layers quantized": len(result["layers"]),
        "left as they were": ", ".join(result["ignore"]) or "none",
    }
    if serving := result["serving"]:
        shown |= {"served on": serving["target"], "there": serving["served"], "picked by": serving["picked_by"]}
    if result["group_size"]:
        shown["group size"] = result["group_size"]
    if result["calibration"]:
        shown["calibration rows"] = result["calibration"]["rows"]
        shown["calibration tokens"] = result["calibration"]["tokens"]
        lengths = result["calibration"]["lengths"]
        shown["tokens of a row"] = f"{lengths['least']} to {lengths['most']}, {lengths['median']} in the middle"
        if len(tasks := result["calibration"]["tasks"]) > 1:
            shown["rows of each task"] = ", ".join(f"{task or 'none'} {count}" for task, count in tasks.items())
    return shown
