"""Who is asking or deciding, as far as it can be verified. Whom KFP names as the starter of a run is not asked."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.approve.service_account import POD_TOKEN_FILE, verify_service_account
from tunegate.approve.tokens import verify_id_token
from tunegate.contracts.approval import UNAUTHENTICATED, Identity, Rules
from tunegate.contracts.errors import ApprovalRefused

#: Set in every pod of a Kubernetes cluster: the user of a container says nothing of a person.
_IN_A_POD = "KUBERNETES_SERVICE_HOST"


def identify(rules: Rules, *, registry: str, environment: Mapping[str, str], api: Any = None) -> Identity:
    """The person or service account at work here.

    Args:
        rules: what is taken as proof, and where it is found.
        registry: a folder is this machine's, and so is its user; a bucket is not.
        environment: where the token may be found.
        api: asks the cluster; see :func:`~tunegate.approve.service_account.verify_service_account`.

    Returns:
        ``unauthenticated`` where there is no proof; whether that is enough is for the rules to say.

    Raises:
        ApprovalRefused: for a proof that does not hold.
        RunError: when it cannot be verified now.
    """
    if rules.identity == "none":
        return _user() if on_this_machine(registry, environment) else UNAUTHENTICATED
    token = _token(rules, environment)
    if not token:
        return UNAUTHENTICATED
    return verify_id_token(token, rules) if rules.identity == "oidc" else verify_service_account(token, rules, api)


def on_this_machine(registry: str, environment: Mapping[str, str]) -> bool:
    """Whether a run is local: a registry in a folder, and no pod."""
    return ("://" not in registry or registry.startswith("file://")) and _IN_A_POD not in environment


def _user() -> Identity:
    """The operating system's user, and not what a variable says."""
    number = os.geteuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Identity(f"local:{name}", "local", {"uid": number})


def _token(rules: Rules, environment: Mapping[str, str]) -> str:
    if rules.token_env and (token := environment.get(rules.token_env, "").strip()):
        return token
    place = rules.token_file or (POD_TOKEN_FILE if rules.identity == "kubernetes" else "")
    path = Path(place)
    if not place or not path.exists():
        return ""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ApprovalRefused(
            f"The token in {path} cannot be read.",
            seen=type(error).__name__,
            expected="a file that holds one token",
            remedy="check approve.token_file and the file's permissions",
        ) from None
