"""The ranks that AdaLoRA left, as a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.pages.charts import heat_map
from tunegate.pages.page import Section
from tunegate.pages.parts import facts, table


def rank_picture(training: Mapping[str, Any]) -> list[Section]:
    """The ranks of ``training.json`` as a heat map; nothing for a method that allocates none."""
    rows: Sequence[Mapping[str, Any]] = training.get("ranks") or ()
    if not rows:
        return []
    cells: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["layer"] is not None:
            cells.setdefault(row["kind"], {})[row["layer"]] = row["rank"]
    left, pruned_away = sum(row["rank"] for row in rows), sum(row["rank"] == 0 for row in rows)
    seen = {
        "ranks left": left,
        "budget (r × modules)": training["settings"]["r"] * len(rows),
        "ranks at the start": sum(row["init_r"] for row in rows),
        "modules": len(rows),
        "modules of rank 0": pruned_away,
    }
    picture = heat_map(cells, x="layer", high=max(row["init_r"] for row in rows))
    note = "The fullest colour is the rank that every module started with; what is left, the allocator found important."
    return [Section("Ranks", facts(seen) + picture, note)]


def rank_listing(training: Mapping[str, Any]) -> list[Section]:
    """The rank of every module as a table, which is long; nothing for a method that allocates none."""
    rows = [[row["module"], row["init_r"], row["rank"]] for row in training.get("ranks") or ()]
    return [Section("Rank of every module", table(["module", "rank at the start", "rank left"], rows))] if rows else []
