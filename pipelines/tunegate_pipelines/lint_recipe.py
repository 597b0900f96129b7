"""The lint of a whole recipe: the table of rules, and what the gate's policy can show with the rows there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.gate.detection import WANTED_POWER, Detection, detections
from tunegate.gate.policy import Policy, Rule, parse_policy
from tunegate.preflight.lint import Context, Finding, Linted, Sections, Unchecked, lint
from tunegate_pipelines.at_hand import context_at_hand
from tunegate_pipelines.own_tasks import Asked, named_tasks, own_tasks

RULE = "gate-power"
_REFERENCE = "components/tunegate/gate/README.md"


def lint_recipe(sections: Sections, *, base_model: str, dataset: str) -> Linted:
    """Every finding, and what the policy can show.

    Args:
        sections: step → its settings, complete.
        base_model, dataset: as in the run form.
    """
    own = own_tasks(sections)
    context = context_at_hand(
        named_tasks(sections, own),
        base_model=base_model,
        dataset=dataset,
        own_tasks={task.name: task.metrics for task in own.values()},
    )
    linted = lint(context)
    policy = parse_policy(sections["gate"]["policy"])
    rows = _rows_of_tasks(context, own.values())
    found = [one for rule in policy.checks if rule.task in rows for one in _detections(policy, rule, rows[rule.task])]
    return dataclasses.replace(
        linted,
        findings=(*linted.findings, *(_finding(one) for one in found if one.too_few)),
        unchecked=linted.unchecked if context.rows else (*linted.unchecked, _unchecked(context)),
        told=tuple(one.told() for one in found),
    )


def _rows_of_tasks(context: Context, own: Iterable[Asked]) -> dict[str, int]:
    """Task → how many rows it will ask, as far as it is known here: those of the harness bring rows of their own."""
    limit = int(context.of("evaluate")["limit"])
    rows = {task.name: task.rows for task in own}
    if context.rows:
        held = max(1, round(context.sample.rows * float(context.of("prepare")["evaluation_fraction"])))
        rows |= dict.fromkeys(LOCAL_TASKS, held)
    return {task: min(count, limit) if limit else count for task, count in rows.items()}


def _detections(policy: Policy, rule: Rule, rows: int) -> list[Detection]:
    return detections(dataclasses.replace(policy, checks=(rule,)), rows)


def _finding(found: Detection) -> Finding:
    seen = f"{found.told()}; asked is {WANTED_POWER:.0%}"
    remedy = (
        f"these rows can hardly show a margin of {found.rule.limit:g}: about {found.rows_wanted} would. Evaluate more "
        "rows, or allow a larger margin"
    )
    return Finding(RULE, "warning", seen, remedy, _REFERENCE)


def _unchecked(context: Context) -> Unchecked:
    return Unchecked(RULE, context.absent.get("rows", "no rows are at hand"))
