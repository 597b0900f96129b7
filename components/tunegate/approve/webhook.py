"""Tells a webhook what the gate said, and that an approval was asked for, given, denied or expired. It has no say.

The body of the POST, as JSON::

    {"schema_version": 1, "event": "requested" | "approved" | "rejected" | "expired", "request": "<digest>",
     "verdict": "PASS", "registry": "…", "alias": "…", "version": "<digest>", "replaces": "<digest>" | null,
     "summary": "<the verdict>", "requester": "…", "expires": "<UTC>", "approver": "…" | null, "reason": "…" | null}

    {"schema_version": 1, "event": "refused", "verdict": "FAIL" | "INCONCLUSIVE", "registry": "…", "alias": "…",
     "summary": "<the verdict>"}
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from tunegate.contracts.approval import Decision, Request
from tunegate.contracts.progress import say
from tunegate.contracts.verdict import Verdict

SCHEMA_VERSION = 1
ATTEMPTS = 3
TIMEOUT_SECONDS = 10.0
_EVENTS = {"approve": "approved", "reject": "rejected", "expire": "expired"}


def tell(
    request: Request,
    decision: Decision | None,
    *,
    registry: str,
    environment: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Calls the webhook that the request's rules name, three times at most. A failure is said and raises nothing.

    Args:
        request: what was asked.
        decision: its answer; None when it was just asked.
        registry: where it lies.
        environment: holds the webhook's address, which is a secret and never told.

    Returns:
        Whether it was heard; False too where there is no webhook.
    """
    body = message(request, decision, registry=registry)
    return _post(request.rules.webhook_url_env, body, environment, sleep)


def tell_refused(
    verdict: Verdict,
    *,
    alias: str,
    registry: str,
    webhook_url_env: str,
    environment: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Tells of a verdict that is no PASS, of which nobody is asked anything; a PASS is told with its request.

    Args:
        verdict: what the gate said.
        alias, registry: what stays as it was.
        webhook_url_env, environment, sleep: see :func:`tell`, which also says what is returned.
    """
    body = {
        "schema_version": SCHEMA_VERSION,
        "event": "refused",
        "verdict": verdict.decision,
        "registry": registry,
        "alias": alias,
        "summary": verdict.summary,
    }
    return _post(webhook_url_env, body, environment, sleep)


def _post(
    name: str, message: Mapping[str, object], environment: Mapping[str, str], sleep: Callable[[float], None]
) -> bool:
    if not name:
        return False
    address = environment.get(name, "")
    if urlsplit(address).scheme not in ("http", "https"):
        say("approve", f"the webhook was not called: {name} holds no http(s) address")
        return False
    body = json.dumps(message).encode()
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        try:
            post = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.urlopen(post, timeout=TIMEOUT_SECONDS):
                return True
        except Exception as error:  # nothing that a webhook does may change what was decided
            problem = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()  # its text may hold the address
    say("approve", f"the webhook in {name} did not answer: {problem}, {ATTEMPTS} times; nothing else is affected")
    return False


def message(request: Request, decision: Decision | None, *, registry: str) -> dict[str, object]:
    """The body of the call."""
    return {
        "schema_version": SCHEMA_VERSION,
        "event": _EVENTS[decision.decision] if decision else "requested",
        "request": request.digest,
        "verdict": "PASS",
        "registry": registry,
        "alias": request.alias,
        "version": request.version,
        "replaces": request.current,
        "summary": request.summary,
        "requester": request.requester.name,
        "expires": request.expires,
        "approver": decision.approver.name if decision else None,
        "reason": decision.reason if decision else None,
    }
