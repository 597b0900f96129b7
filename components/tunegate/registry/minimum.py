"""The registry's own rules of approval, ``approvals/rules.json``: nobody who asks can loosen them.

A registry without that object has no rules of its own: each request is bound to those that its recipe says.
"""

from __future__ import annotations

import json

from tunegate.contracts.approval import Request, Rules
from tunegate.contracts.approval_minimum import Minimum, looser, parse_minimum
from tunegate.contracts.errors import ApprovalRefused, ArtifactError, InputError, SettingsError
from tunegate.contracts.files import pretty_json
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1
KEY = "approvals/rules.json"


def read_minimum(storage: Storage) -> Minimum | None:
    """The registry's rules; None where it has none.

    Raises:
        ArtifactError: when they cannot be read: nothing is taken for allowed then.
    """
    blob = storage.read(KEY)
    if blob is None:
        return None
    try:
        document = dict(json.loads(blob.data))
        if document.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"no schema version {SCHEMA_VERSION}")
        return parse_minimum(document, where=KEY)
    except (ValueError, TypeError, InputError) as error:
        raise ArtifactError(
            f"{KEY} in {storage.uri} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"rules of approval of schema version {SCHEMA_VERSION}",
            remedy=f"write it anew: tunegate registry rules {storage.uri} --set FILE",
        ) from error


def write_minimum(storage: Storage, minimum: Minimum) -> None:
    """Writes the registry's rules. Requests that were made under others are void.

    Raises:
        ConflictError: when somebody else writes them at the same time.
    """
    there = storage.read(KEY)
    document = pretty_json({"schema_version": SCHEMA_VERSION, **minimum.to_json()})
    storage.write(KEY, document, if_generation_match=there.generation if there else 0)


def refuse_looser(storage: Storage, rules: Rules) -> Minimum | None:
    """Lets rules through that hold to the registry's, which are returned.

    Raises:
        SettingsError: naming each that is looser.
    """
    minimum = read_minimum(storage)
    if minimum is not None and (found := looser(rules, minimum)):
        raise _looser(storage, found)
    return minimum


def refuse_unasked(storage: Storage, *, require_signature: bool) -> None:
    """Lets a promotion through for which nobody's approval was asked, where the registry needs none.

    Args:
        storage: the registry.
        require_signature: whether the version must be signed to be promoted.

    Raises:
        SettingsError: naming what the registry asks for.
    """
    minimum = read_minimum(storage)
    if minimum is None:
        return
    found = ["approve.required: is False, must be True"] if minimum.required else []
    if minimum.require_signature and not require_signature:
        found.append("signing.require_signature: is False, must be True")
    if found:
        raise _looser(storage, found)


def refuse_looser_request(storage: Storage, request: Request) -> None:
    """Lets a request through whose rules hold to the registry's as they are now, whoever wrote it.

    Raises:
        ApprovalRefused: naming each that is looser.
    """
    minimum = read_minimum(storage)
    if minimum is not None and (found := looser(request.rules, minimum)):
        raise ApprovalRefused(
            f"The request {request.digest[:12]} is bound to looser rules than the registry's.",
            seen=f"{len(found)} rule(s) that whoever asked chose otherwise",
            expected=f"what {KEY} in {storage.uri} says",
            remedy="ask again under the registry's rules",
            items=found,
        )


def _looser(storage: Storage, found: list[str]) -> SettingsError:
    return SettingsError(
        "The recipe is looser than the registry allows.",
        seen=f"{len(found)} rule(s) that are not the registry's",
        expected=f"what {KEY} in {storage.uri} says (tunegate registry rules {storage.uri})",
        remedy="set them so in the sections 'approve' and 'signing'; who may write that document can change it",
        items=found,
    )
