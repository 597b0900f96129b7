"""Approval: a request, bound to the digests of all it is about, and one decision, bound to the request's digest."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunegate.contracts.files import sha256_json

SCHEMA_VERSION = 1

#: What a person may say of a request.
DECISIONS = ("approve", "reject")

#: What ``approve.identity`` may be: who vouches for a person.
IDENTITIES = ("none", "oidc", "kubernetes")

Choice = Literal["approve", "reject", "expire"]
#: How a person is known: a verified ID token, a service account that the cluster vouches for, the user of this machine,
#: or not at all.
Method = Literal["oidc", "kubernetes", "local", "none"]


@dataclass(frozen=True)
class Identity:
    """Who asked or decided.

    Attributes:
        name: an e-mail address, ``sub:<subject>``, ``system:serviceaccount:<namespace>:<name>``, ``local:<user>``, or
            ``unauthenticated``.
        method: how that is known.
        evidence: what was verified (issuer, subject, audience, sha256 of the token): never the token itself.
    """

    name: str
    method: Method
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def is_same_person(self, other: Identity) -> bool:
        """Whether two identities are one: by name, or as one subject of one issuer, whatever address a token shows."""
        subjects = [(who.evidence.get("iss"), who.evidence.get("sub")) for who in (self, other)]
        return self.name == other.name or (None not in subjects[0] and subjects[0] == subjects[1])


UNAUTHENTICATED = Identity("unauthenticated", "none")


@dataclass(frozen=True)
class Rules:
    """Who may decide, and how they prove who they are: part of the request, so that nobody loosens it later.

    Attributes:
        identity: ``oidc`` or ``kubernetes``; ``none``: the user of this machine for a folder, and nobody for a bucket.
        approvers: names that may decide; none given: anybody but the requester, on this machine only.
        allow_requester: whether the requester may approve.
        allow_unauthenticated: whether somebody unknown may.
        issuer, audience, jwks: what an ID token must state, and the keys it is verified with.
        token_env, token_file: where the token is found.
        require_signature: whether only a signed version may be promoted.
        webhook_url_env: the environment variable that holds a webhook's address.
    """

    identity: str = "none"
    approvers: tuple[str, ...] = ()
    allow_requester: bool = False
    allow_unauthenticated: bool = False
    issuer: str = ""
    audience: str = ""
    jwks: str = ""
    token_env: str = ""
    token_file: str = ""
    require_signature: bool = False
    webhook_url_env: str = ""


@dataclass(frozen=True)
class Request:
    """What somebody is asked to approve: this version, on these reports, for this alias as it is now.

    Attributes:
        alias: which alias would move.
        generation: the alias's generation when it was asked; any move since makes the request void.
        current: the version the alias points at now; None when there is none.
        version: the digest of the version that lies in the registry already, with no alias on it.
        parts: role → content digest of each part of the version: verdict, reports, models, lineage.
        policy_digest: the policy that the verdict applied.
        summary: the verdict in one sentence.
        requester: who asked.
        rules: who may decide.
        created, expires: UTC times: an answer comes before ``expires``.
        use_before: UTC time: an approval is used before that, or never.
        minimum: the registry's own rules when it was asked; empty where it had none.
        claim: that of the retraining which asks, held against a newer one at the promotion; empty for any other run.
    """

    alias: str
    generation: int
    current: str | None
    version: str
    parts: Mapping[str, str]
    policy_digest: str
    summary: str
    requester: Identity
    rules: Rules
    created: str
    expires: str
    use_before: str
    minimum: Mapping[str, Any] = field(default_factory=dict)
    claim: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """The request's name: it changes with everything the request is bound to."""
        return sha256_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The request as it is written."""
        document = dataclasses.asdict(self)
        document["rules"]["approvers"] = list(self.rules.approvers)
        if not self.claim:  # it keeps the name it had before there were claims
            del document["claim"]
        return document

    def asks_the_same(self, other: Request) -> bool:
        """Whether two requests differ in their times alone."""
        one, another = (dataclasses.replace(asked, created="", expires="", use_before="") for asked in (self, other))
        return one == another

    def expired(self, now: datetime.datetime) -> bool:
        """Whether it is too late to decide."""
        return now >= datetime.datetime.fromisoformat(self.expires)

    def lapsed(self, now: datetime.datetime) -> bool:
        """Whether it is too late to use an approval of it."""
        return now >= datetime.datetime.fromisoformat(self.use_before)


@dataclass(frozen=True)
class Decision:
    """The one answer to a request.

    Attributes:
        request: the digest of the request.
        decision: ``approve``, ``reject``, or ``expire`` when nobody answered in time.
        approver: who decided.
        reason: their words.
        decided: UTC time.
    """

    request: str
    decision: Choice
    approver: Identity
    reason: str
    decided: str
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """The decision's own digest, for the record of a promotion."""
        return sha256_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The decision as it is written."""
        return dataclasses.asdict(self)


def request_from_json(document: Mapping[str, Any]) -> Request:
    """A request as it was written.

    Raises:
        ValueError, TypeError, KeyError: when it is none.
    """
    rules = {**document["rules"], "approvers": tuple(document["rules"]["approvers"])}
    request = Request(**{**document, "requester": Identity(**document["requester"]), "rules": Rules(**rules)})
    for time in (request.expires, request.use_before):
        datetime.datetime.fromisoformat(time)
    _require_schema(request.schema_version)
    return request


def decision_from_json(document: Mapping[str, Any]) -> Decision:
    """A decision as it was written.

    Raises:
        ValueError, TypeError, KeyError: when it is none.
    """
    decision = Decision(**{**document, "approver": Identity(**document["approver"])})
    if decision.decision not in (*DECISIONS, "expire"):
        raise ValueError(f"decision {decision.decision!r}")
    datetime.datetime.fromisoformat(decision.decided)
    _require_schema(decision.schema_version)
    return decision


def _require_schema(version: int) -> None:
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema version {version}")


def utc_now() -> datetime.datetime:
    """The time, in whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
