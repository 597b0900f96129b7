"""The profile as a page: lengths, roles, what was left out and why."""

from __future__ import annotations

from tunegate.pages.charts import histogram
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.prepare.profile import Prepared, kinds, lengths, reasons, roles, row_count
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.split import SIDES

_EXAMPLES = 5
_PAIRS_SHOWN = 20


def profile_page(prepared: Prepared, settings: PrepareSettings) -> str:
    """A complete HTML document."""
    sections = [_sides(prepared), _lengths(prepared, settings), _roles(prepared), _dropped(prepared)]
    sections.append(_overlap(prepared, settings))
    subtitle = f"{prepared.read:,} rows of the format {prepared.format}, {len(prepared.dropped):,} left out"
    return page("Data set", [section for section in sections if section], subtitle=subtitle)


def _sides(prepared: Prepared) -> Section:
    counts: dict[str, object] = {side: row_count(prepared, side) for side in SIDES}
    note = "A row's side follows from its own prompt: adding rows moves none. Calibration rows are training rows."
    return Section("Rows", facts({**counts, "calibration": len(prepared.calibration)}), note)


def _lengths(prepared: Prepared, settings: PrepareSettings) -> Section:
    chart = histogram(
        {side: [float(value) for value in lengths(prepared, side)] for side in SIDES},
        x="tokens in a row",
        marks={"max_length": float(settings.max_length)},
    )
    cut = sum(row.cut for row in prepared.rows)
    return Section("Lengths", chart, f"{cut} rows are longer than max_length and are cut in training." if cut else "")


def _roles(prepared: Prepared) -> Section | None:
    counted = roles(prepared)
    return Section("Roles", table(["role", "turns"], [[*item] for item in counted.items()])) if counted else None


def _dropped(prepared: Prepared) -> Section:
    if not prepared.dropped:
        return Section("Left out", paragraph("No row was left out."))
    examples = [
        [row.where, row.reason, row.detail]
        for reason in reasons(prepared)
        for row in [row for row in prepared.dropped if row.reason == reason][:_EXAMPLES]
    ]
    body = table(["reason", "rows"], [[*item] for item in reasons(prepared).items()])
    body += table(["row", "reason", "seen"], examples, caption=f"At most {_EXAMPLES} of each reason")
    return Section("Left out", body, "The first thousand are listed in profile.json.")


def _overlap(prepared: Prepared, settings: PrepareSettings) -> Section:
    found, remaining = kinds(prepared.found), kinds(prepared.remaining)
    body = table(
        ["overlap with evaluation rows", "exact", "near"],
        [["found", found["exact"], found["near"]], ["remaining", remaining["exact"], remaining["near"]]],
    )
    if prepared.found:
        body += table(
            ["seen in training", "evaluation row", "part", "kind", "similarity"],
            [[p.learned, p.evaluation, p.part, p.kind, p.similarity] for p in prepared.found[:_PAIRS_SHOWN]],
            caption=f"The first {min(len(prepared.found), _PAIRS_SHOWN)} of {len(prepared.found)} found",
        )
    note = f"Near: a Jaccard similarity of at least {settings.overlap_threshold:g}. overlap_strategy: "
    return Section("Overlap", body, note + settings.overlap_strategy)
