"""What the pipeline's own components do, without kfp."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.approve.identity import identify
from tunegate.approve.settings import ApproveSettings, rules_of
from tunegate.approve.webhook import tell_refused
from tunegate.contracts.approval_rules import refuse_unknown_requester
from tunegate.contracts.claim import parse_claim
from tunegate.contracts.errors import GateRefused, reports_errors
from tunegate.contracts.images import QUANTIZERS
from tunegate.contracts.launch import KfpArtifact
from tunegate.contracts.manifest import image_reference
from tunegate.contracts.settings import parse_settings
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, facts, paragraph, table
from tunegate.preflight.lint import Linted, refuse
from tunegate.quantize.legacy.environment import check_environment
from tunegate.registry.minimum import refuse_looser, refuse_unasked
from tunegate.registry.refusals import note_refusal
from tunegate.storage.open import open_storage
from tunegate_pipelines.changes import made_by
from tunegate_pipelines.form import SECTIONS
from tunegate_pipelines.lint_page import lint_section
from tunegate_pipelines.lint_recipe import lint_recipe
from tunegate_pipelines.own_tasks import check_own_tasks
from tunegate_pipelines.quantizers import image_of
from tunegate_pipelines.recipe import Sections, check_destination, refuse_unreachable, resolve

ROWS_NAMED = 5


@reports_errors
def launch_check(
    form: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    base_model: str,
    dataset: str,
    registry: str,
    checkpoint_uri: str = "",
    quantizers: Mapping[str, str] = QUANTIZERS,
    page: KfpArtifact,
) -> Any:
    """Resolves and lints; returns each step's settings, in the order of ``SECTIONS``, and what the pipeline follows.

    That is whether a person is asked, and of ``quantizers``, backend → image, the one that quantize runs in.
    """
    sections = resolve(form, recipe)
    check_destination(sections, registry)
    check_own_tasks(sections)
    backend = sections["quantize"]["backend"]
    if not image_reference():  # else that image holds what the backend needs, and this one of control does not
        check_environment(backend, given=sections["quantize"]["legacy_python"])
    for address in (registry, checkpoint_uri):
        refuse_unreachable(address)
    linted = lint_recipe(sections, base_model=base_model, dataset=dataset)
    write_page(page, settings_page(sections, linted))
    refuse(linted)
    told = {step: _without_none(values) for step, values in sections.items()}
    names = (*SECTIONS, "approval", "quantizer", "made_by")
    follows = (_approval(sections, registry), image_of(backend, quantizers), made_by(sections))
    return namedtuple("Settings", names)(*told.values(), *follows)  # type: ignore[call-arg]


def _approval(sections: Sections, registry: str) -> str:
    """Whether a person is asked; who asks must be known then, and the registry's own rules be held to."""
    settings = parse_settings(ApproveSettings, sections["approve"], where="recipe.approve")
    storage, signature = open_storage(registry), sections["signing"]["require_signature"]
    if not settings.required:
        refuse_unasked(storage, require_signature=signature)
        return "waived"
    rules = rules_of(settings, require_signature=signature)
    refuse_looser(storage, rules)
    refuse_unknown_requester(rules, identify(rules, registry=registry, environment=os.environ))
    return "required"


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """KFP's parameters know no null; a setting that is left out takes its default, which is the null it was."""
    return {name: value for name, value in values.items() if value is not None}


@reports_errors
def launch_refused(
    settings: Mapping[str, Any], verdict: KfpArtifact, *, alias: str, registry: str, claim: Mapping[str, Any]
) -> None:
    """Raises what the verdict says; keeps it for the next retraining, and tells the webhook where there is one."""
    said = read_verdict(Path(verdict.path))
    if claimed := parse_claim(claim):
        note_refusal(open_storage(registry), claimed, by="the gate", reason=said.summary)
    hook = parse_settings(ApproveSettings, settings, where="recipe.approve").webhook_url_env
    tell_refused(said, alias=alias, registry=registry, webhook_url_env=hook, environment=os.environ)
    raise refusal(said)


@reports_errors
def launch_summarize(status: Any, run_form: Mapping[str, str], *, page: KfpArtifact) -> None:
    """Writes the run's last page."""
    write_page(page, summary_page(status.state, status.pipeline_task_name or "", status.error_message or "", run_form))


def refusal(verdict: Verdict) -> GateRefused:
    """The verdict as an error that names each rule that was not met, and the rows that decided it."""
    broken = [check for check in verdict.checks if check.decision != "PASS"]
    items = []
    for check in broken:
        rows = f" (rows {', '.join(check.rows[:ROWS_NAMED])})" if check.rows else ""
        needed = f" (about {check.rows_needed} rows would decide it)" if check.rows_needed else ""
        items.append(f"{check.decision} {check.rule}: {check.reason}{rows}{needed}")
    return GateRefused(
        f"The gate refused: {verdict.summary}",
        seen=f"{verdict.decision}: {len(broken)} of {len(verdict.checks)} rules not met",
        expected="PASS on every rule of the policy",
        remedy="look at the verdict page and the named rows; the alias was left as it was",
        items=items,
    )


def settings_page(sections: Sections, linted: Linted) -> str:
    """Every setting of a run, and what the lint says of them."""
    rows = [(step, name, str(value)) for step, values in sections.items() for name, value in values.items()]
    parts = [lint_section(linted), Section("Settings", table(("step", "setting", "value"), rows))]
    return page("Check", parts, subtitle="run form and recipe, complete with defaults")


def summary_page(state: str, task: str, message: str, run_form: Mapping[str, str]) -> str:
    """How a run ended.

    ``task`` is what KFP names: the group that the exit handler watches, or the step in it, as the backend has it.
    """
    succeeded = state == "SUCCEEDED"
    told = {"state": state, "task that succeeded" if succeeded else "task that failed": task or "not named by KFP"}
    body = badge("PASS" if succeeded else "FAIL") + facts({**told, **run_form})
    if message:
        body += paragraph(message)
    return page("Run", [Section("How it ended", body)])


def write_page(artifact: KfpArtifact, text: str) -> None:
    """Writes an HTML output."""
    Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
    Path(artifact.path).write_text(text, "utf-8")
