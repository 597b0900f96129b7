"""ID tokens (https://openid.net/specs/openid-connect-core-1_0.html#IDToken): signature, issuer, audience and expiry."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunegate.contracts.approval import Identity, Rules
from tunegate.contracts.errors import ApprovalRefused, RunError

#: Signatures with a key pair alone: with a shared secret, whoever can verify a token could have made it.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
#: How far two clocks may be apart.
LEEWAY_SECONDS = 30
TIMEOUT_SECONDS = 10.0
_LARGEST_BYTES = 1 << 20


def verify_id_token(token: str, rules: Rules) -> Identity:
    """The person an ID token is about.

    The name is their verified e-mail address, or else ``sub:`` and the token's subject, which is no address of anybody.

    Raises:
        ApprovalRefused: saying what of the token does not hold; the token itself is never told.
        RunError: when the issuer's keys cannot be had.
    """
    import jwt

    keys = _keys(rules)
    try:
        key = _key_of(token, keys)
        claims = jwt.decode(
            token,
            key=key,
            algorithms=list(ALGORITHMS),
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "iss", "aud", "sub"]},
        )
    except (jwt.PyJWTError, LookupError, ValueError) as error:
        raise refused_token(
            f"{type(error).__name__}: {error}", f"a token of {rules.issuer} for {rules.audience}"
        ) from None
    email = claims.get("email") if claims.get("email_verified") is True else None
    evidence = {name: claims[name] for name in ("iss", "sub", "aud", "iat", "exp")}
    name = str(email) if email else f"sub:{claims['sub']}"
    return Identity(name, "oidc", {**evidence, "token_sha256": token_digest(token)})


def token_digest(token: str) -> str:
    """What is recorded of a token: enough to know it again, and nothing to use it with."""
    return hashlib.sha256(token.encode()).hexdigest()


def refused_token(seen: str, expected: str) -> ApprovalRefused:
    """The error for a token that is there and does not hold."""
    return ApprovalRefused(
        "The identity token does not count.",
        seen=seen,
        expected=expected,
        remedy="get a new token for that audience, and put it where approve.token_env or approve.token_file says",
    )


def _key_of(token: str, keys: dict[str, Any]) -> Any:
    """The issuer's key that the token names; where it names none, the only one there is."""
    import jwt

    found = jwt.PyJWKSet.from_dict(keys).keys
    named = jwt.get_unverified_header(token).get("kid")
    fitting = [key for key in found if key.key_id == named] if named else found
    if len(fitting) != 1:
        raise LookupError(f"{len(fitting)} of the issuer's {len(found)} keys fit the token")
    return fitting[0]


def _keys(rules: Rules) -> dict[str, Any]:
    """The issuer's key set: out of a file, from an address, or from where the issuer's own description says."""
    place = rules.jwks
    try:
        if not place:
            described = _fetched(f"{rules.issuer.rstrip('/')}/.well-known/openid-configuration")
            if described["issuer"] != rules.issuer:
                raise ValueError(f"it is described by issuer {described['issuer']!r}")
            place = described["jwks_uri"]
        return _fetched(place) if "://" in place else _object(Path(place).read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"The keys of {rules.issuer} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="a JSON Web Key Set in a file, or at an https:// address",
            remedy="check approve.issuer and approve.jwks, and whether this machine reaches them",
        ) from error


def _fetched(address: str) -> dict[str, Any]:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1")):
        raise ValueError(f"{address} is not https: anybody in between could send other keys")
    with urllib.request.build_opener(_NoRedirect).open(address, timeout=TIMEOUT_SECONDS) as answer:
        return _object(answer.read(_LARGEST_BYTES))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: what was checked is the address that somebody wrote down, and not where it leads."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> None:
        raise ValueError(f"{req.full_url} redirects to {rest[-1]}: name that address itself")


def _object(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where an object belongs")
    return found
