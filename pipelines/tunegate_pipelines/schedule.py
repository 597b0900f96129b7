"""Makes the recurring runs on KFP those of a schedule file. Run again, it changes nothing.

KFP changes nothing of a recurring run but whether it is enabled: what changed is made anew, and the old one removed.
Each carries in its description whose it is, and a digest of all that it is: by these it is found and compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunegate.contracts.files import sha256_json
from tunegate_pipelines.cluster import Cluster, read_cluster
from tunegate_pipelines.kfp_server import KfpServer, connect
from tunegate_pipelines.recipe import read_recipe
from tunegate_pipelines.schedule_file import Schedule, read_schedules
from tunegate_pipelines.submission import Submission, prepare_submission
from tunegate_pipelines.submit import uploaded

_MARK = re.compile(r"tunegate schedule; owner (?P<owner>[\w.-]+); spec (?P<spec>[0-9a-f]{64})")

Kind = Literal["create", "change", "enable", "disable", "remove", "keep"]


@dataclass(frozen=True)
class Wanted:
    """A recurring run as the file has it.

    Attributes:
        schedule: what the file says.
        submission: what it starts.
        cluster: where.
    """

    schedule: Schedule
    submission: Submission
    cluster: Cluster

    @property
    def spec(self) -> str:
        """The digest of all that cannot be changed in place: what is started, when, and as whom."""
        told = {
            "name": self.schedule.name,
            "pipeline": self.submission.pipeline,
            "version": self.submission.version,
            "parameters": dict(self.submission.parameters),
            "trigger": self.trigger(),
            "max_concurrency": self.schedule.max_concurrency,
            "catch_up": self.schedule.catch_up,
            "experiment": self.cluster.experiment,
            "service_account": self.cluster.service_account,
            "pipeline_root": self.cluster.pipeline_root,
        }
        return sha256_json(told)

    def trigger(self) -> dict[str, Any]:
        """When it starts, as arguments of KFP's client."""
        told: dict[str, Any] = {"start_time": self.schedule.start or None, "end_time": self.schedule.end or None}
        if self.schedule.cron:
            return {**told, "cron_expression": self.schedule.cron}
        return {**told, "interval_second": self.schedule.interval_seconds}


@dataclass(frozen=True)
class Owned:
    """A recurring run on KFP that carries the owner's mark."""

    id: str
    name: str
    spec: str
    enabled: bool


@dataclass(frozen=True)
class Change:
    """What is done about one name.

    Attributes:
        kind: what.
        name: of the recurring run.
        wanted: None where it is removed.
        kept: the id of the one that stays; empty where one is created.
        removed: ids of those that go: the old one, and copies that an interrupted change left.
    """

    kind: Kind
    name: str
    wanted: Wanted | None
    kept: str
    removed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"name": self.name, "action": self.kind, "removed": list(self.removed)}


def reconcile(file: Path, cluster: Path, *, dry_run: bool) -> list[dict[str, Any]]:
    """Makes KFP's recurring runs those of a file.

    Args:
        file: the schedule file.
        cluster: the cluster file.
        dry_run: only says what would be done.

    Returns:
        What was done about each name, for a person and for scripts.

    Raises:
        InputError: for anything that cannot be used; nothing was changed then, or KFP refused it.
        RunError: when KFP cannot answer: run again, what was done stays done.
    """
    owner, schedules = read_schedules(file)
    there = read_cluster(cluster)
    wanted = [_wanted(one, file.parent, there) for one in schedules]
    server = connect(there, os.environ)
    done = []
    for change in changes(wanted, owned(server, owner)):
        made = change.kept if dry_run else _carry_out(server, change, owner)
        done.append({**change.to_json(), "recurring_run": made or None})
    return done


def changes(wanted: Sequence[Wanted], there: Sequence[Owned]) -> list[Change]:
    """What must be done, name by name: first those of the file, in its order."""
    found = []
    for one in wanted:
        own = [run for run in there if run.name == one.schedule.name]
        same = [run for run in own if run.spec == one.spec]
        if not same:
            kind: Kind = "change" if own else "create"
            found.append(Change(kind, one.schedule.name, one, "", tuple(run.id for run in own)))
            continue
        rest = tuple(run.id for run in own if run is not same[0])
        kind = "keep"
        if same[0].enabled != one.schedule.enabled:
            kind = "enable" if one.schedule.enabled else "disable"
        found.append(Change(kind, one.schedule.name, one, same[0].id, rest))
    names = {one.schedule.name for one in wanted}
    for name in sorted({run.name for run in there} - names):
        found.append(Change("remove", name, None, "", tuple(run.id for run in there if run.name == name)))
    return found


def owned(server: KfpServer, owner: str) -> list[Owned]:
    """The recurring runs on KFP that carry this owner's mark."""
    found = []
    for run in server.recurring_runs():
        mark = _MARK.fullmatch(str(run.description or ""))
        if mark and mark["owner"] == owner:
            enabled = str(run.status or "") == "ENABLED"
            found.append(Owned(str(run.recurring_run_id), str(run.display_name), mark["spec"], enabled))
    return found


def _wanted(schedule: Schedule, folder: Path, cluster: Cluster) -> Wanted:
    recipe = read_recipe(folder / schedule.recipe, schedule.set)
    extra: Mapping[str, Any] = {"lease_seconds": schedule.lease_seconds} if schedule.lease_seconds else {}
    submission = prepare_submission(
        recipe, cluster, pipeline=schedule.pipeline, model=schedule.model, extra=extra, name=schedule.name
    )
    return Wanted(schedule, submission, cluster)


def _carry_out(server: KfpServer, change: Change, owner: str) -> str:
    """Does it, the new before the old is removed: whatever ends it in between, the name is still started."""
    made = change.kept
    if change.wanted is not None and not made:
        made = _create(server, change.wanted, owner)
    if change.kind in ("enable", "disable"):
        server.set_enabled(made, change.kind == "enable")
    for recurring_run_id in change.removed:
        server.delete_recurring_run(recurring_run_id)
    return made


def _create(server: KfpServer, wanted: Wanted, owner: str) -> str:
    schedule, cluster = wanted.schedule, wanted.cluster
    ids = uploaded(server, wanted.submission)
    return server.create_recurring_run(
        experiment_id=server.experiment_id(cluster.experiment),
        job_name=schedule.name,
        description=f"tunegate schedule; owner {owner}; spec {wanted.spec}",
        **wanted.trigger(),
        max_concurrency=schedule.max_concurrency,
        no_catchup=not schedule.catch_up,
        params=dict(wanted.submission.parameters),
        pipeline_id=ids[0],
        version_id=ids[1],
        enabled=schedule.enabled,
        pipeline_root=cluster.pipeline_root or None,
        service_account=cluster.service_account or None,
    )
