"""The export page: which rank each module had, and what a cut kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table
from tunegate.tensors.export import ExportedModule

_ENERGY = (
    "Energy: the share of ‖ΔW‖² that is kept. A module of a smaller rank than the export's is padded with zeros, which "
    "changes nothing."
)


def export_page(summary: Mapping[str, object], modules: Sequence[ExportedModule]) -> str:
    """Every module of an exported adapter, in the order of its file."""
    rows = [(m.module, m.rank, m.kept_rank, m.norm, m.energy) for m in modules]
    listed = table(["module", "rank before", "rank kept", "‖ΔW‖", "energy"], rows)
    sections = [Section("The export", facts(summary)), Section("Every module", listed, _ENERGY)]
    return page("Export", sections, subtitle="plain LoRA of one rank, lora_alpha = r, the scaling in B")
