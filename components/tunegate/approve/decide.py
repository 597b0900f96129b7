"""Answering a request: once, by somebody who may, while it is still about what it was about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.approve.identity import identify
from tunegate.approve.webhook import tell
from tunegate.contracts.approval import DECISIONS, Choice, Decision, Identity, Request, utc_now
from tunegate.contracts.approval_rules import refuse_approver
from tunegate.contracts.errors import ApprovalRefused, InputError
from tunegate.registry.approvals import find_request, read_decision, write_decision
from tunegate.registry.minimum import refuse_looser_request
from tunegate.registry.requested import refuse_changed
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage


def run(
    request: str, decision: str, *, reason: str, registry: str, environment: Mapping[str, str], api: Any = None
) -> tuple[Request, Decision]:
    """Approves or rejects a request, as whoever is at work here.

    Args:
        request: the request's digest, or its first letters.
        decision: ``approve`` or ``reject``.
        reason: why, in the approver's words.
        registry: a folder or URI.
        environment: where the approver's token and the webhook's address are found.
        api: see :func:`tunegate.approve.identity.identify`.

    Raises:
        InputError: when there is no such request, or the decision is another word or has no reason.
        ApprovalRefused: when it is too late, something changed since, or this person may not decide.
        ConflictError: when it was answered otherwise before.
    """
    choice = parse_choice(decision)
    if not reason.strip():
        raise InputError(
            "A decision needs a reason.",
            seen="an empty text",
            expected="a few words for whoever reads the history in a year",
            remedy="say why, with --reason or in the pipeline's parameter 'reason'",
        )
    storage = open_storage(registry)
    storage.refuse_absent()
    asked = find_request(storage, request)
    refuse_looser_request(storage, asked)  # before anybody is asked whom the requester may have chosen as a witness
    approver = identify(asked.rules, registry=storage.uri, environment=environment, api=api)
    return asked, decide(storage, asked, choice, approver, reason.strip(), environment)


def decide(
    storage: Storage, request: Request, choice: Choice, approver: Identity, reason: str, environment: Mapping[str, str]
) -> Decision:
    """Writes the answer of a person who is known. See :func:`run`."""
    now = utc_now()
    done = read_decision(storage, request.digest)
    if done is None and request.expired(now):
        raise ApprovalRefused(
            f"The request {request.digest[:12]} has expired.",
            seen=f"it is {now.isoformat()}",
            expected=f"an answer before {request.expires}",
            remedy="ask again: run the pipeline once more",
        )
    if choice == "approve" or not approver.is_same_person(request.requester):  # whoever asked may take it back
        refuse_approver(request, approver)
    if choice == "approve" and done is None:
        refuse_changed(storage, request)
    decision = write_decision(storage, Decision(request.digest, choice, approver, reason, now.isoformat()))
    if done is None:
        tell(request, decision, registry=storage.uri, environment=environment)
    return decision


def parse_choice(text: str) -> Choice:
    """``approve`` or ``reject``, and nothing that looks like it: KFP's form offers no list to choose from.

    Raises:
        InputError: for any other word.
    """
    if text == "approve":
        return "approve"
    if text == "reject":
        return "reject"
    raise InputError(
        "The decision is not understood.",
        seen=repr(text),
        expected=" or ".join(repr(choice) for choice in DECISIONS),
        remedy="write one of the two, in small letters",
    )
