"""What the pipeline ``retrain`` does before and after the steps that it shares, without kfp."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from tunegate.approve.settings import ApproveSettings
from tunegate.contracts.errors import SettingsError, reports_errors
from tunegate.contracts.launch import KfpArtifact
from tunegate.contracts.progress import say
from tunegate.contracts.settings import parse_settings
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph
from tunegate.registry.claims import Begun, begin, end
from tunegate.storage.open import open_storage
from tunegate_pipelines.changes import made_from
from tunegate_pipelines.launch import summary_page, write_page
from tunegate_pipelines.pinned_inputs import refuse_unpinned

_TITLES = {
    "changed": "Something changed: a version is made",
    "unchanged": "Nothing changed: nothing is done",
    "rolled back": "A version made of this was rolled back: nothing is done",
    "refused": "This was refused before: nothing is done",
    "held": "Another retraining goes on: nothing is done",
}


@reports_errors
def launch_begin(
    *,
    base_model: str,
    dataset: str,
    registry: str,
    alias: str,
    made_by: str,
    approve: Mapping[str, Any],
    approval: str,
    lease_seconds: int,
    holder: str,
    page: KfpArtifact,
) -> Any:
    """Decides and claims; returns the decision, why, and the claim or an empty one."""
    if lease_seconds < 1:
        raise SettingsError(
            "lease_seconds is out of range.",
            seen=str(lease_seconds),
            expected="at least 1, and longer than the run takes",
            remedy="give the longest time that a run of this recipe took, twice over",
        )
    refuse_unpinned({"base_model": base_model, "dataset": dataset})
    storage = open_storage(registry)
    storage.refuse_absent()
    waiting = parse_settings(ApproveSettings, approve, where="recipe.approve").expires_seconds
    seconds = lease_seconds + (waiting if approval == "required" else 0)
    digest = made_from(dataset=dataset, base_model=base_model, recipe=made_by)
    begun = begin(storage, alias, made_from=digest, holder=holder, seconds=seconds)
    say("retrain", f"{begun.decision}: {begun.reason}")
    write_page(page, _page(begun, {"alias": alias, "registry": registry, "made from": digest}))
    claim = begun.claim.to_json() if begun.claim else {}
    return namedtuple("Begun", ("decision", "reason", "claim"))(begun.decision, begun.reason, claim)  # type: ignore[call-arg]


@reports_errors
def launch_end(status: Any, run_form: Mapping[str, str], *, holder: str, page: KfpArtifact) -> None:
    """Writes the run's last page, and gives its claim back where it has one."""
    task, message = status.pipeline_task_name or "", status.error_message or ""
    write_page(page, summary_page(status.state, task, message, run_form))
    if end(open_storage(run_form["registry"]), run_form["alias"], holder=holder):
        say("retrain", "the claim on the alias was given back")


def _page(begun: Begun, told: Mapping[str, str]) -> str:
    shown = {**told, "token": str(begun.claim.token) if begun.claim else "none"}
    return page("Retrain", [Section(_TITLES[begun.decision], paragraph(begun.reason) + facts(shown))])
