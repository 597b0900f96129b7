"""Lint: settings that are each valid, and together known to waste a run.

Each rule is a line of :data:`~tunegate.preflight.rules.table.RULES`; a new one is added there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.contracts.errors import LintError, ModelError
from tunegate.preflight.rule import Context, Finding, Need, Rule, Sample, Sections
from tunegate.preflight.rules.table import RULES

__all__ = ["Context", "Finding", "Linted", "Sample", "Sections", "Unchecked", "lint", "refuse"]

#: Why a rule was not checked, where nobody said more.
_ABSENT: Mapping[Need, str] = {
    "base_config": "the base's config.json is not at hand",
    "rows": "no rows are at hand",
    "serving_target": "quantize.serving_target does not name where the model will be served",
}


@dataclass(frozen=True)
class Unchecked:
    """A rule that could not look, and why."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Linted:
    """What a lint says.

    Attributes:
        findings: in the order of the table.
        unchecked: rules that mean something for this run, and could not be checked here.
        told: what is said of the run whether or not anything was found.
    """

    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]
    told: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For scripts, and for the run's page."""
        return {
            "findings": [asdict(found) for found in self.findings],
            "unchecked": [asdict(u) for u in self.unchecked],
            "told": list(self.told),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Linted:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(Finding(**found) for found in document["findings"]),
            tuple(Unchecked(**rule) for rule in document["unchecked"]),
            tuple(document.get("told", ())),
        )


def lint(context: Context, *, rules: Sequence[Rule] = RULES) -> Linted:
    """Every finding of every rule that means something for the settings.

    Args:
        context: the settings, and what is at hand of base and rows.
        rules: the table.
    """
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    for rule in rules:
        if not rule.applies(context.sections):
            continue
        if reason := _missing(rule, context):
            unchecked.append(Unchecked(rule.id, reason))
            continue
        try:
            said = list(rule.find(context))
        except ModelError as error:  # the shapes of this architecture are not known
            unchecked.append(Unchecked(rule.id, f"the base's shapes are not known: {error.seen}"))
        else:
            findings += [Finding(rule.id, r.severity, r.seen, r.remedy, rule.reference) for r in said]
    return Linted(tuple(findings), tuple(unchecked))


def refuse(linted: Linted) -> None:
    """Stops the run when there is an error among the findings.

    Raises:
        LintError: with each error.
    """
    errors = [finding for finding in linted.findings if finding.severity == "error"]
    if errors:
        raise LintError(
            "The settings would waste the run.",
            seen="; ".join(finding.seen for finding in errors),
            expected="no lint error",
            remedy="; ".join(finding.remedy for finding in errors),
            items=[f"{f.rule}: {f.seen} ({f.reference})" for f in errors],
        )


def _missing(rule: Rule, context: Context) -> str:
    """Why the rule cannot be checked; empty when it can."""
    missing = [need for need in rule.needs if getattr(context, need) is None]
    return "; ".join(context.absent.get(need, _ABSENT[need]) for need in missing)
