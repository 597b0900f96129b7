"""The one page of a run: what was decided, the models side by side, and a link to every picture and table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunegate.contracts.files import pretty_json
from tunegate.contracts.launch import PAGE_NAME, read_summary
from tunegate.contracts.verdict import Check, Verdict
from tunegate.pages.page import Section, page
from tunegate.pages.parts import Link, badge, facts, folded, paragraph, table
from tunegate_pipelines.lint_page import lint_section
from tunegate_pipelines.report import INDEX_NAME, Made, Report, comparison

PAGES_FOLDER = "pages"
REPORT_NAME = "report.json"

#: Kind of artifact → what its page shows.
_SHOWS: Mapping[str, str] = {
    "dataset": "profile: sides, lengths, what was left out",
    "adapter": "loss curves, throughput, ranks",
    "merged": "what the adapter changed, and on which base",
    "quantized": "format, layers, sizes",
    "parity": "how far the models are apart, token by token",
    "evaluation": "scores, slices, worst rows",
    "champion": "what users have now",
    "serving": "the serving engine's answers beside the evaluated ones",
    "verdict": "every check, with the rows that decided",
    "request": "what a person was asked to approve",
    "decision": "who approved or rejected, and why",
    "promotion": "version, alias, lineage",
}

#: So many figures of a step are told beside its link.
_FIGURES = 6


def write_pages(report: Report, output: Path) -> Path:
    """Copies every artifact's page below ``output`` and writes the page that links them, and ``report.json``.

    Returns:
        The page.
    """
    pages = output / PAGES_FOLDER
    pages.mkdir(exist_ok=True)
    targets: dict[str, str] = {}
    for made in report.artifacts:
        name = f"{made.name.replace(' ', '-')}.html"
        shutil.copyfile(made.folder / PAGE_NAME, pages / name)
        targets[made.name] = f"{PAGES_FOLDER}/{name}"
    sections = []
    if report.verdict:
        sections.append(Section("Verdict", _verdict(report.verdict)))
    if report.results:
        sections.append(Section("Models", table(*comparison(report))))
    if report.promotion:
        told = {name: report.promotion[name] or "nothing" for name in ("alias", "version", "previous", "registry")}
        sections.append(Section("Promotion", facts(told)))
    if report.artifacts:
        steps = [_step(made, targets[made.name]) for made in report.artifacts]
        sections.append(Section("Steps", table(("page", "shows", "in short", "digest"), steps)))
    if report.linted:
        sections.append(lint_section(report.linted))
    index = output / INDEX_NAME
    index.write_text(page("Fine-tuning run", sections, subtitle=output.name), "utf-8")
    (output / REPORT_NAME).write_bytes(pretty_json(report.to_json()))
    return index


def _verdict(verdict: Verdict) -> str:
    """The checks that do not hold as they are; those that do, behind a click."""
    broken = [check for check in verdict.checks if check.decision != "PASS"]
    held = [check for check in verdict.checks if check.decision == "PASS"]
    shown = badge(verdict.decision) + paragraph(verdict.summary)
    if broken:
        shown += _checks(broken)
    return shown + (folded(f"{len(held)} checks hold", _checks(held)) if held else "")


def _checks(checks: Sequence[Check]) -> str:
    return table(("decision", "rule", "reason"), [(check.decision, check.rule, check.reason) for check in checks])


def _step(made: Made, href: str) -> tuple[Link, str, str, str]:
    figures = list(read_summary(made.folder).items())[:_FIGURES]
    short = " · ".join(f"{_words(name)} {_plain(value)}" for name, value in figures)
    return Link(made.name, href), _SHOWS[made.manifest.kind], short, made.manifest.content_digest[:12]


def _words(name: str) -> str:
    """A figure's name for reading; that of a task and its metric stays as the policy calls it."""
    return name if "." in name else name.replace("_", " ")


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
