"""Whose approval counts: asked when a decision is made, and again when it is used, for anybody may write a file."""

from __future__ import annotations

import datetime

from tunegate.contracts.approval import Decision, Identity, Request, Rules
from tunegate.contracts.errors import ApprovalRefused, SettingsError

#: Methods that prove a person to others; ``local`` does for a folder of this machine only.
PROVEN = ("oidc", "kubernetes")


def refuse_unusable(rules: Rules, *, where: str) -> None:
    """Refuses rules under which nobody could approve, or anybody.

    Args:
        where: what the rules are called in an error.

    Raises:
        SettingsError: naming what is missing.
    """
    missing = [name for name in ("issuer", "audience") if rules.identity == "oidc" and not getattr(rules, name)]
    if rules.identity in PROVEN and not rules.approvers:
        missing.append("approvers")
    if missing:
        raise SettingsError(
            f"{where} is incomplete.",
            seen=f"identity {rules.identity!r} without {', '.join(missing)}",
            expected="who may approve, and whose word is taken for who they are",
            remedy=f"add {', '.join(missing)} to {where}",
        )


def refuse_unknown_requester(request_rules: Rules, requester: Identity) -> None:
    """Refuses a request of somebody unknown where the requester may not approve: nobody could tell them apart.

    Raises:
        SettingsError: saying how a requester becomes known.
    """
    if requester.method != "none" or request_rules.allow_unauthenticated:
        return
    raise SettingsError(
        "Nobody knows who asks for this approval.",
        seen="no verified identity; KFP's own record of who started a run is not trustworthy",
        expected="a requester who can be told from the approver",
        remedy="set approve.identity to 'kubernetes' or 'oidc' with its approvers; or, where that is meant, "
        "approve.allow_unauthenticated, or approve.required to false",
    )


def refuse_approver(request: Request, approver: Identity) -> None:
    """Lets somebody through who may approve this request.

    Raises:
        ApprovalRefused: saying what is in the way.
    """
    rules, name = request.rules, approver.name
    if approver.method == "none" and not rules.allow_unauthenticated:
        raise _refused(
            request,
            seen="no verified identity",
            expected="a named person, known by " + _proof(rules),
            remedy="run it where such a token is found, or ask somebody who can",
        )
    if rules.identity in PROVEN and approver.method not in (rules.identity, "none"):
        raise _refused(
            request,
            seen=f"{name}, known by {approver.method!r}",
            expected="a person known by " + _proof(rules),
            remedy="approve with the identity that the request asks for",
        )
    if rules.approvers and name not in rules.approvers:
        raise _refused(
            request,
            seen=name,
            expected=f"one of {', '.join(rules.approvers)}",
            remedy="ask one of them; the rules are bound to the request and cannot be changed for it",
        )
    if approver.is_same_person(request.requester) and approver.method != "none" and not rules.allow_requester:
        asked_as = "" if name == request.requester.name else f" as {request.requester.name}"
        raise _refused(
            request,
            seen=f"{name}, who asked for it{asked_as}",
            expected="somebody else",
            remedy="ask another person, or make the request with approve.allow_requester",
        )


def refuse_invalid(request: Request, decision: Decision) -> None:
    """Lets an approval through that counts for this request.

    Raises:
        ApprovalRefused: for a rejection, one that came too late or from the wrong person, or of another request.
    """
    if decision.request != request.digest:
        raise _refused(
            request,
            seen=f"an approval of request {decision.request}",
            expected=f"an approval of request {request.digest}",
            remedy="do not use this approval: it is of something else",
        )
    if decision.decision != "approve":
        raise denial(request, decision)
    if request.expired(datetime.datetime.fromisoformat(decision.decided)):
        raise _refused(
            request,
            seen=f"approved at {decision.decided}",
            expected=f"before {request.expires}",
            remedy="ask again",
        )
    refuse_approver(request, decision.approver)


def refuse_lapsed(request: Request, now: datetime.datetime) -> None:
    """Refuses an approval that lay unused for too long: what it was given for was weighed at another time.

    Raises:
        ApprovalRefused: saying until when it could have been used.
    """
    if request.lapsed(now):
        raise _refused(
            request,
            seen=f"it is {now.isoformat()}",
            expected=f"a promotion before {request.use_before}",
            remedy="ask again; approve.use_within_seconds says how long an approval may lie",
        )


def denial(request: Request, decision: Decision) -> ApprovalRefused:
    """A decision that is no approval, as the error of whoever waited for one."""
    said = "expired: nobody answered in time" if decision.decision == "expire" else "was rejected"
    return ApprovalRefused(
        f"The request {request.digest[:12]} {said}.",
        seen=f"{decision.decision} by {decision.approver.name} at {decision.decided}: {decision.reason}",
        expected="approve",
        remedy="the alias stays where it was; ask again when the reason is gone",
    )


def _proof(rules: Rules) -> str:
    if rules.identity == "oidc":
        return f"an ID token of {rules.issuer}"
    return "a service account's token" if rules.identity == "kubernetes" else "the user of this machine"


def _refused(request: Request, *, seen: str, expected: str, remedy: str) -> ApprovalRefused:
    return ApprovalRefused(
        f"This approval of request {request.digest[:12]} does not count.", seen=seen, expected=expected, remedy=remedy
    )
