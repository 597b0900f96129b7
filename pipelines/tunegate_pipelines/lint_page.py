"""What the lint said, as a section of a page."""

from __future__ import annotations

from tunegate.pages.page import Section
from tunegate.pages.parts import paragraph, table
from tunegate.preflight.lint import Linted


def lint_section(linted: Linted) -> Section:
    """Findings, and below them the rules that could not be checked, and what the policy can show."""
    found = (
        table(
            ("severity", "rule", "seen", "to do", "reference"),
            [(f.severity, f.rule, f.seen, f.remedy, f.reference) for f in linted.findings],
        )
        if linted.findings
        else paragraph("Nothing to say.")
    )
    unchecked = (
        table(("not checked", "because"), [(rule.rule, rule.reason) for rule in linted.unchecked])
        if linted.unchecked
        else ""
    )
    return Section("Lint", found + unchecked + "".join(paragraph(text) for text in linted.told))
