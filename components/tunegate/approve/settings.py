"""The settings of approval."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tunegate.contracts.approval import IDENTITIES, Rules
from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class ApproveSettings:
    """Whether a person is asked, who may answer, and how they prove who they are."""

    required: bool = setting(
        True, help="whether a person must approve; a run on this machine for a folder asks only where this is said"
    )
    expires_seconds: int = setting(
        3 * 24 * 3600, minimum=1, unit="seconds", help="how long there is to answer; then the request is rejected"
    )
    use_within_seconds: int = setting(
        3 * 24 * 3600, minimum=1, unit="seconds", help="how long after that an approval may be used; then it is void"
    )
    poll_seconds: float = setting(10.0, minimum=0.05, unit="seconds", help="how often the waiting step looks")
    approvers: tuple[str, ...] = setting(
        (), help="who may approve: e-mail addresses, system:serviceaccount:<namespace>:<name>, local:<user>"
    )
    allow_requester: bool = setting(False, help="whether whoever asked may approve")
    allow_unauthenticated: bool = setting(False, help="whether somebody whom nobody vouches for may approve")
    identity: str = setting(
        "none",
        choices=IDENTITIES,
        help="who vouches for a person: an OpenID issuer, or the cluster for its service accounts",
    )
    issuer: str = setting("", help="oidc: the issuer that a token must name")
    audience: str = setting("", help="oidc, kubernetes: the audience that a token must be for")
    jwks: str = setting("", help="oidc: file or https:// address of the issuer's keys; empty: as the issuer says")
    token_env: str = setting("TUNEGATE_ID_TOKEN", help="environment variable that holds the token")
    token_file: str = setting("", help="file that holds the token; kubernetes: the pod's own when empty")
    webhook_url_env: str = setting("", help="environment variable that holds the address of a webhook")


def rules_of(settings: ApproveSettings, *, require_signature: bool) -> Rules:
    """What of the settings is bound into a request."""
    shared = {field.name for field in dataclasses.fields(Rules)} & {
        field.name for field in dataclasses.fields(settings)
    }
    return Rules(**{name: getattr(settings, name) for name in shared}, require_signature=require_signature)
