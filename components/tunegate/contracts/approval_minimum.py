"""The least that every approval for a registry holds to: said by whoever administers it, and not by whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.approval import IDENTITIES, Rules
from tunegate.contracts.approval_rules import refuse_unusable
from tunegate.contracts.settings import parse_settings, setting, settings_document

#: Who says who somebody is: an issuer or keys of the requester's own choice would say what the requester likes.
_EXACT = ("identity", "issuer", "audience", "jwks")
#: What a request may do without, and may not do where the registry does not.
_LEAVES = ("allow_requester", "allow_unauthenticated")


@dataclass(frozen=True)
class Minimum:
    """Rules of a registry. Those of a request may be stricter, and are never looser."""

    required: bool = setting(True, help="whether nothing is promoted that nobody approved")
    identity: str = setting("none", choices=IDENTITIES, help="who vouches for a person; nobody else does")
    issuer: str = setting("", help="oidc: the issuer that a token must name")
    audience: str = setting("", help="oidc, kubernetes: the audience that a token must be for")
    jwks: str = setting("", help="oidc: file or https:// address of the issuer's keys; empty: as the issuer says")
    approvers: tuple[str, ...] = setting((), help="who may approve; a request may name some of them, and nobody else")
    allow_requester: bool = setting(False, help="whether a request may let whoever asked approve")
    allow_unauthenticated: bool = setting(False, help="whether a request may let somebody unknown approve")
    require_signature: bool = setting(False, help="whether only a signed version may be promoted")

    def to_json(self) -> dict[str, Any]:
        """The rules as they are written, and as they are bound into a request."""
        return settings_document(self)


def parse_minimum(document: Mapping[str, Any], *, where: str) -> Minimum:
    """Rules of a registry out of a mapping; what is left out is the strictest.

    Args:
        where: what the mapping is called in an error.

    Raises:
        SettingsError: for an unknown key or value, or rules under which nobody could approve, or anybody.
    """
    minimum = parse_settings(Minimum, document, where=where)
    shared = {name: getattr(minimum, name) for name in (*_EXACT, *_LEAVES, "approvers", "require_signature")}
    refuse_unusable(Rules(**shared), where=where)
    return minimum


def looser(rules: Rules, minimum: Minimum) -> list[str]:
    """Each rule of a request that is looser than the registry's, with both; none: it holds to them."""
    found = [
        f"approve.{name}: is {getattr(rules, name)!r}, must be {getattr(minimum, name)!r}"
        for name in _EXACT
        if getattr(rules, name) != getattr(minimum, name)
    ]
    others = sorted(set(rules.approvers) - set(minimum.approvers))
    if minimum.approvers and (others or not rules.approvers):
        named = ", ".join(others) or "anybody"
        found.append(f"approve.approvers: lets {named} approve, must be some of {', '.join(minimum.approvers)}")
    found += [
        f"approve.{name}: is True, must be False"
        for name in _LEAVES
        if getattr(rules, name) and not getattr(minimum, name)
    ]
    if minimum.require_signature and not rules.require_signature:
        found.append("signing.require_signature: is False, must be True")
    return found


def minimum_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each rule of the registry that is another one than when something was asked."""
    return [
        f"rules of the registry: {name} is {now.get(name, 'not said')!r}, was {before.get(name, 'not said')!r}"
        for name in dict.fromkeys((*now, *before))
        if now.get(name) != before.get(name)
    ]
