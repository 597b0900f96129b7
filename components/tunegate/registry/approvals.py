"""Requests and decisions in the registry.

::

    approvals/requests/<digest>.json      immutable, named by its own digest
    approvals/decisions/<digest>.json     of the request of that digest; written once, by whoever answers first
    approvals/rules.json                  the registry's own rules: see minimum.py
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tunegate.contracts.approval import Decision, Request, decision_from_json, request_from_json
from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import canonical_json
from tunegate.registry.aliases import read_alias
from tunegate.storage.interface import Storage

_REQUESTS = "approvals/requests"
_DECISIONS = "approvals/decisions"
_DIGEST = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T", Request, Decision)


def write_request(storage: Storage, request: Request) -> str:
    """Writes a request and returns its digest; the same request again is kept."""
    try:
        storage.write(_key(_REQUESTS, request.digest), canonical_json(request.to_json()), if_generation_match=0)
    except ConflictError:
        read_request(storage, request.digest)
    return request.digest


def read_request(storage: Storage, digest: str) -> Request:
    """Reads a request.

    Raises:
        InputError: when there is none of that digest.
        ArtifactError: when it is malformed, or not what its name says.
    """
    request = _read(storage, _REQUESTS, digest, request_from_json)
    if request is None:
        raise InputError(
            f"There is no approval request {digest!r} in {storage.uri}.",
            seen="no such request",
            expected="the digest that the request's page shows",
            remedy="check the digest and the registry's address",
        )
    if request.digest != digest:
        raise _broken(storage, f"{_REQUESTS}/{digest}.json", f"a request whose digest is {request.digest}")
    return request


def find_request(storage: Storage, text: str) -> Request:
    """The one request whose digest starts with ``text``.

    Raises:
        InputError: when there is none, or more than one.
    """
    if _DIGEST.fullmatch(text):
        return read_request(storage, text)
    found = [digest for digest in list_requests(storage) if text and digest.startswith(text)]
    if len(found) != 1:
        raise InputError(
            f"{text!r} does not name an approval request in {storage.uri}.",
            seen=f"{len(found)} requests that start so",
            expected="the digest of one request, or its first letters",
            remedy="take it from the request's page",
            items=found,
        )
    return read_request(storage, found[0])


def list_requests(storage: Storage) -> list[str]:
    """The digests of all requests."""
    return [key.rsplit("/", 1)[-1].removesuffix(".json") for key in storage.list(_REQUESTS)]


def write_decision(storage: Storage, decision: Decision) -> Decision:
    """Writes the answer to a request, once. The same answer of the same person again is the one that was written.

    Raises:
        ConflictError: when the request was answered otherwise, naming who did and how.
    """
    try:
        key = _key(_DECISIONS, decision.request)
        storage.write(key, canonical_json(decision.to_json()), if_generation_match=0)
    except ConflictError:
        done = read_decision(storage, decision.request)
        if done and (done.decision, done.approver.name) == (decision.decision, decision.approver.name):
            return done
        raise ConflictError(
            f"The request {decision.request[:12]} was decided already.",
            seen=f"{done.decision} by {done.approver.name} at {done.decided}: {done.reason}" if done else "a decision",
            expected="a request without a decision",
            remedy="ask again, if it should be decided otherwise: a decision is never changed",
        ) from None
    return decision


def read_decision(storage: Storage, request: str) -> Decision | None:
    """The answer to a request, None when there is none yet.

    Raises:
        ArtifactError: when it is malformed, or the answer to another request.
    """
    decision = _read(storage, _DECISIONS, request, decision_from_json)
    if decision is not None and decision.request != request:
        raise _broken(storage, f"{_DECISIONS}/{request}.json", f"a decision on request {decision.request}")
    return decision


def open_request(storage: Storage, like: Request, now: datetime.datetime) -> Request | None:
    """An unanswered request that asks the same and is not expired: a step that is tried again asks once."""
    for digest in list_requests(storage):
        found = read_request(storage, digest)
        if found.asks_the_same(like) and not found.expired(now) and read_decision(storage, digest) is None:
            return found
    return None


def versions_asked_for(storage: Storage, now: datetime.datetime) -> set[str]:
    """Versions that a request still needs though no alias points at them: what garbage collection must keep.

    A request is over when it was rejected, expired without an answer or lapsed after one, or when its alias has moved
    since.
    """
    kept = set()
    for digest in list_requests(storage):
        request, decision = read_request(storage, digest), read_decision(storage, digest)
        approved = decision is not None and decision.decision == "approve" and not request.lapsed(now)
        waiting = not request.expired(now) if decision is None else approved
        if waiting and read_alias(storage, request.alias).generation == request.generation:
            kept.add(request.version)
    return kept


def _read(storage: Storage, folder: str, digest: str, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    blob = storage.read(_key(folder, digest)) if _DIGEST.fullmatch(digest) else None
    if blob is None:
        return None
    try:
        return parse(json.loads(blob.data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(storage, f"{folder}/{digest}.json", f"{type(error).__name__}: {error}") from error


def _key(folder: str, digest: str) -> str:
    return f"{folder}/{digest}.json"


def _broken(storage: Storage, key: str, seen: str) -> ArtifactError:
    return ArtifactError(
        f"{key} in {storage.uri} is not what its name says.",
        seen=seen,
        expected="a document that tunegate wrote, unchanged",
        remedy="somebody changed the registry: do not use this approval, and ask again",
    )
