"""What an approval was asked for, held against what is there now."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.approval import Request, utc_now
from tunegate.contracts.approval_minimum import minimum_changes
from tunegate.contracts.approval_rules import refuse_lapsed
from tunegate.contracts.claim import parse_claim
from tunegate.contracts.errors import ApprovalRefused
from tunegate.contracts.manifest import read_manifest
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.registry.aliases import current, read_alias
from tunegate.registry.minimum import read_minimum, refuse_looser_request
from tunegate.registry.versions import fetch_part, show_version
from tunegate.storage.interface import Storage
from tunegate.storage.lease import read_lease

#: Parts that are read when the version is promoted; the reports are read when somebody approves.
WEIGHTS = ("adapter", "merged", "quantized")


def refuse_changed(storage: Storage, request: Request) -> None:
    """Lets a request through that is still about what it was about; the reports are read byte by byte.

    Raises:
        ApprovalRefused: naming what changed since it was asked, or each rule that is looser than the registry's; or
            when it is too late to use an approval.
        ArtifactError: naming each file of a report that is not what its manifest says.
    """
    refuse_lapsed(request, utc_now())
    refuse_looser_request(storage, request)
    minimum = read_minimum(storage)
    rules = minimum_changes(request.minimum, minimum.to_json() if minimum else {})
    found = dict(show_version(storage, request.version).parents)
    with tempfile.TemporaryDirectory(prefix="tunegate-approval-") as scratch:
        for role in request.parts.keys() - set(WEIGHTS):
            found[role] = fetch_part(storage, request.version, role, Path(scratch) / role).content_digest
        verdict = read_verdict(Path(scratch) / "verdict")
    moved = alias_changes(storage, request) + claim_changes(storage, request)
    _refuse(request, rules + moved + part_changes(request, found, verdict))


def refuse_changed_parts(request: Request, folder: Path) -> Verdict:
    """Lets a version through, fetched into ``folder``, whose parts are those that were approved; gives its verdict.

    Raises:
        ApprovalRefused: naming each part that is another one.
    """
    found = {role: read_manifest(folder / role).content_digest for role in read_manifest(folder).parents}
    verdict = read_verdict(folder / "verdict")
    _refuse(request, part_changes(request, found, verdict))
    return verdict


def alias_changes(storage: Storage, request: Request) -> list[str]:
    """Whether the alias moved since it was asked, and who moved it."""
    alias = read_alias(storage, request.alias)
    if alias.generation == request.generation:
        return []
    now = current(storage, request.alias)
    told = f"{now.action} to {now.version} at {now.created}" if now else "removed"
    if (now.version if now else None) == request.current:
        told += ", or a retraining took over from one that died"
    return [f"alias {request.alias}: {told}; it pointed at {request.current or 'nothing'} when this was asked"]


def claim_changes(storage: Storage, request: Request) -> list[str]:
    """Whether a newer retraining claimed the alias since one asked."""
    claim = parse_claim(request.claim)
    newest = read_lease(storage, claim.lease) if claim else None
    if claim is None or (newest is not None and newest.token == claim.token):
        return []
    told = f"{newest.holder} took it (token {newest.token})" if newest else "it is gone"
    return [f"claim of the retraining on {claim.lease}: {told}; it had token {claim.token} when this was asked"]


def part_changes(request: Request, found: Mapping[str, str], verdict: Verdict) -> list[str]:
    """Each part, the policy and the decision that are not what they were when it was asked."""
    wrong = [
        f"{role}: is {found.get(role, 'missing')}, was {request.parts.get(role, 'no part')}"
        for role in sorted(found.keys() | request.parts.keys())
        if found.get(role) != request.parts.get(role)
    ]
    if verdict.policy_digest != request.policy_digest:
        wrong.append(f"policy: is {verdict.policy_digest}, was {request.policy_digest}")
    if verdict.decision != "PASS":
        wrong.append(f"verdict: says {verdict.decision}, said PASS")
    return wrong


def _refuse(request: Request, changes: list[str]) -> None:
    if changes:
        raise ApprovalRefused(
            f"What the request {request.digest[:12]} is about has changed since it was asked.",
            seen=f"{len(changes)} change(s)",
            expected="everything as it was when the approval was asked for",
            remedy="ask for approval of what is there now",
            items=changes,
        )
