"""Follows a run on KFP: what started and ended, how far it is, and how it ended, as an exit code."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tunegate.contracts.errors import GateRefused, RunError, TunegateError
from tunegate_pipelines.follow import View
from tunegate_pipelines.kfp_server import KfpServer, NotSignedIn

POLL_SECONDS = 10.0

#: How long a KFP that does not answer is asked again: a run takes hours, and an upgrade of its server some minutes.
PATIENCE_SECONDS = 900.0

_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_WELL = ("SUCCEEDED", "SKIPPED")

#: Tasks that end red because somebody said no: the gate, or a person.
_REFUSING: Mapping[str, str] = {
    "refused": "The gate refused: nothing was promoted.",
    "not-approved": "Nobody approved: nothing was promoted.",
}

#: Entries of a run that are no task of the pipeline: groups, the engine's own pods, and the run itself.
_GROUPS = re.compile(
    r"root|executor|.*-driver|(exit-handler|condition|condition-branches|for-loop)-.*|(finetune|retrain)-.*"
)


@dataclass
class Followed:
    """What of a run was shown.

    Attributes:
        state: KFP's word for how it stands.
        tasks: task → its state, of the pipeline's own tasks.
        seconds: since the first look.
        run: KFP's own record of it at the last look; None before the first.
    """

    state: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    run: Any = None

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"state": self.state, "tasks": dict(self.tasks), "seconds": round(self.seconds, 1)}


def follow_run(
    server: KfpServer,
    run_id: str,
    view: View,
    *,
    total: int,
    labels: Mapping[str, str],
    poll_seconds: float = POLL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    followed: Followed | None = None,
) -> Followed:
    """Looks at a run until it ends. Once it was seen, a KFP that does not answer is asked again for a while.

    Args:
        server: KFP.
        run_id: which run.
        view: how it is shown.
        total: how many tasks it may run; 0 where that is not known. Branches that are not taken never run.
        labels: task → what a person calls it.
        poll_seconds: how often it is looked at.
        sleep: waits, in seconds.
        followed: what is filled: whoever gave it knows how the run stood, however the looking ends.

    Returns:
        How it stood at the last look.

    Raises:
        InputError, RunError: as the server says.
    """
    followed, started = followed or Followed(), time.monotonic()
    answered = started
    while True:
        try:
            followed.run = server.run(run_id)
        except (RunError, NotSignedIn) as error:
            waits = server.renews or not isinstance(error, NotSignedIn)
            if followed.run is None or not waits or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            view.news("run", f"{error.failed} It is asked again.")
            sleep(poll_seconds)
            continue
        answered = time.monotonic()
        followed.seconds = answered - started
        _show(followed.run, followed, view, total, labels)
        if followed.state in _ENDED:
            return followed
        sleep(poll_seconds)


def refuse_unless_succeeded(followed: Followed, link: str) -> None:
    """Lets a run through that reached its end.

    Args:
        followed: how it ended.
        link: where a person looks.

    Raises:
        GateRefused: when the gate or a person said no.
        RunError: when it failed, or somebody stopped it.
    """
    if followed.state in _WELL:
        return
    failed = [task for task, state in followed.tasks.items() if state == "FAILED"]
    raise _ending(followed.state, failed, _words(followed.run), link)


def _ending(state: str, failed: list[str], words: list[str], link: str) -> TunegateError:
    for task, sentence in _REFUSING.items():
        if state == "FAILED" and task in failed:
            return GateRefused(
                sentence,
                seen=f"the task {task!r} of the run",
                expected="a PASS of the gate, and an approval where one is asked for",
                remedy=f"read its page: {link}",
            )
    if state == "CANCELED":
        return RunError(
            "The run was stopped before its end.",
            seen="somebody, or a limit of the cluster, cancelled it",
            expected="a run to its end",
            remedy=f"look at {link}; with a checkpoint_uri, a new run with the same recipe trains on from there",
        )
    return RunError(
        "The run failed" + (f" in {', '.join(failed)}." if failed else "."),
        seen="; ".join(words) or "no words of KFP",
        expected="a run to its end",
        remedy=f"read the log of the red task: {link}",
        items=failed,
    )


def _show(run: Any, followed: Followed, view: View, total: int, labels: Mapping[str, str]) -> None:
    followed.state = str(run.state or "")
    for detail in _details(run):
        task, state = str(detail.display_name), str(detail.state or "")
        before = followed.tasks.get(task)
        followed.tasks[task] = state
        if state == before:
            continue
        shown = labels.get(task, task)
        if state == "RUNNING":
            view.started(shown)
            view.news("run", f"{shown} started")
        elif state in ("SUCCEEDED", "FAILED", "CANCELED"):
            view.ended(shown, state == "SUCCEEDED", _seconds(detail))
    done = sum(1 for state in followed.tasks.values() if state in _ENDED)
    running = [labels.get(task, task) for task, state in followed.tasks.items() if state == "RUNNING"]
    if total and followed.state not in _ENDED:
        rate = f"{done / followed.seconds * 60:.2g} tasks/min" if done and followed.seconds > 1 else ""
        facts = " · ".join(part for part in (rate, f"running: {', '.join(running)}" if running else "") if part)
        view.progress("run", min(done, total), total, "tasks", facts)


def _details(run: Any) -> list[Any]:
    """The pipeline's own tasks, in the order in which they started."""
    found = list(run.run_details.task_details or ()) if run.run_details else []
    own = [one for one in found if one.display_name and not _GROUPS.fullmatch(str(one.display_name))]
    return sorted(own, key=lambda one: str(one.start_time or one.create_time or ""))


def _seconds(detail: Any) -> float:
    if isinstance(detail.start_time, datetime) and isinstance(detail.end_time, datetime):
        return max((detail.end_time - detail.start_time).total_seconds(), 0.0)
    return 0.0


def _words(run: Any) -> list[str]:
    """What KFP says of the failure: of the run and of its tasks."""
    errors = [run.error, *(one.error for one in _details(run))]
    return [" ".join(str(error.message).split())[:300] for error in errors if error is not None and error.message]
