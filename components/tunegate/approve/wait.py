"""Waiting for an answer. Nothing is kept in this process: tried again, it looks at the same request and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from tunegate.approve.page import decision_page
from tunegate.approve.webhook import tell
from tunegate.contracts.approval import (
    UNAUTHENTICATED,
    Decision,
    Request,
    decision_from_json,
    request_from_json,
    utc_now,
)
from tunegate.contracts.approval_rules import denial
from tunegate.contracts.artifact import produce
from tunegate.contracts.claim import parse_claim
from tunegate.contracts.errors import ApprovalRefused, ConflictError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.progress import say
from tunegate.registry.approvals import find_request, read_decision, write_decision
from tunegate.registry.refusals import note_refusal
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

KIND = "decision"
DECISION_NAME = "decision.json"
SCHEMA_VERSION = 1


def run(
    request: str, *, registry: str, poll_seconds: float, environment: Mapping[str, str], output: Path
) -> tuple[Manifest, Decision]:
    """Waits until somebody answered, or until it is too late: then the request is rejected for good.

    A person's no to a retraining is kept: nothing is made of the same again.

    Args:
        request: the request's digest, or its first letters.
        registry: a folder or URI.
        poll_seconds: how often it looks.
        environment: holds the webhook's address.
        output: where the ``decision`` artifact will be.

    Raises:
        InputError: when there is no such registry or request.
    """
    storage = open_storage(registry)
    storage.refuse_absent()
    asked = find_request(storage, request)
    decision = read_decision(storage, asked.digest)
    if decision is None:
        say("approve", f"{asked.alias} would move to {asked.version[:12]}; waiting until {asked.expires}")
        decision = wait(storage, asked, poll_seconds=poll_seconds, environment=environment)
    say("approve", f"{decision.decision} by {decision.approver.name}: {decision.reason}")
    if decision.decision == "reject" and (claim := parse_claim(asked.claim)):  # nobody's answer is no refusal
        note_refusal(storage, claim, by=decision.approver.name, reason=decision.reason)
    manifest = produce(
        output,
        kind=KIND,
        parents={"request": asked.digest},
        settings={"registry": storage.uri},
        build=lambda folder: _write(folder, asked, decision, storage.uri),
    )
    return manifest, decision


def wait(
    storage: Storage,
    request: Request,
    *,
    poll_seconds: float,
    environment: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = utc_now,
) -> Decision:
    """The answer to a request, as soon as there is one; at its expiry that is a rejection, written as such."""
    while True:
        decision = read_decision(storage, request.digest)
        if decision is not None:
            return decision
        time_is = now()
        if request.expired(time_is):
            return _expire(storage, request, time_is, environment)
        left = (datetime.fromisoformat(request.expires) - time_is).total_seconds()
        sleep(min(poll_seconds, max(left, 0.05)))


def read_denial(folder: Path) -> ApprovalRefused:
    """A ``decision`` artifact that is no approval, as an error."""
    document = read_json_object(folder / DECISION_NAME)
    return denial(request_from_json(document["request"]), decision_from_json(document["decision"]))


def _expire(storage: Storage, request: Request, now: datetime, environment: Mapping[str, str]) -> Decision:
    """Closes the request; somebody who answered at the last moment was first."""
    late = Decision(request.digest, "expire", UNAUTHENTICATED, "nobody answered in time", now.isoformat())
    try:
        decision = write_decision(storage, late)
    except ConflictError:
        answered = read_decision(storage, request.digest)
        if answered is None:
            raise
        return answered
    tell(request, decision, registry=storage.uri, environment=environment)
    return decision


def _write(folder: Path, request: Request, decision: Decision, registry: str) -> None:
    document = {
        "schema_version": SCHEMA_VERSION,
        "registry": registry,
        "request": request.to_json(),
        "decision": decision.to_json(),
    }
    (folder / DECISION_NAME).write_bytes(pretty_json(document))
    (folder / "page.html").write_text(decision_page(request, decision, registry), "utf-8")
    summary = {
        "request": request.digest,
        "decision": decision.decision,
        "approver": decision.approver.name,
        "reason": decision.reason,
    }
    (folder / "summary.json").write_bytes(pretty_json(summary))
