"""The lint of a whole recipe: the table of rules, and what the gate's policy can show with the rows there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.gate.detection import WANTED_POWER, Detection, detections
from tunegate.gate.policy import Policy, parse_policy
from tunegate.preflight.lint import Context, Finding, Linted, Sections, Unchecked, lint
from tunegate_pipelines.at_hand import context_at_hand

RULE = "gate-power"
_REFERENCE = "components/tunegate/gate/README.md"


def lint_recipe(sections: Sections, *, base_model: str, dataset: str) -> Linted:
    """Every finding, and what the policy can show.

    Args:
        sections: step → its settings, complete.
        base_model, dataset: as in the run form.
    """
    context = context_at_hand(sections, base_model=base_model, dataset=dataset)
    linted = lint(context)
    policy = parse_policy(sections["gate"]["policy"])
    if context.rows is None:
        return dataclasses.replace(linted, unchecked=(*linted.unchecked, _unchecked(context)))
    found = detections(_on_dataset(policy), _evaluation_rows(context.sample.rows, sections))
    return dataclasses.replace(
        linted,
        findings=(*linted.findings, *(_finding(one) for one in found if one.too_few)),
        told=tuple(one.told() for one in found),
    )


def _on_dataset(policy: Policy) -> Policy:
    """The checks of tasks that ask the data set's rows: how many rows other tasks bring is not known here."""
    return dataclasses.replace(policy, checks=tuple(rule for rule in policy.checks if rule.task in LOCAL_TASKS))


def _evaluation_rows(rows: int, sections: Mapping[str, Mapping[str, object]]) -> int:
    """How many of the data set's rows are evaluated."""
    share, limit = sections["prepare"]["evaluation_fraction"], sections["evaluate"]["limit"]
    assert isinstance(share, float) and isinstance(limit, int)
    held = max(1, round(rows * share))
    return min(held, limit) if limit else held


def _finding(found: Detection) -> Finding:
    seen = f"{found.told()}; asked is {WANTED_POWER:.0%}"
    remedy = (
        f"these rows can hardly show a margin of {found.rule.limit:g}: about {found.rows_wanted} would. Evaluate more "
        "rows, or allow a larger margin"
    )
    return Finding(RULE, "warning", seen, remedy, _REFERENCE)


def _unchecked(context: Context) -> Unchecked:
    return Unchecked(RULE, context.absent.get("rows", "no rows are at hand"))
