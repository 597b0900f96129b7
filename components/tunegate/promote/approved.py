"""Promotion of what was approved: from the registry alone, by digest. No run waits for it, nor do a run's files."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from tunegate.contracts.approval import Decision, Request
from tunegate.contracts.approval_rules import refuse_invalid
from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.claim import parse_claim, refuse_foreign_claim
from tunegate.contracts.errors import ApprovalRefused
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.progress import say
from tunegate.promote.outcome import Outcome, refuse_used, write_outcome
from tunegate.registry.aliases import Alias, history, promote, read_alias
from tunegate.registry.approvals import find_request, read_decision
from tunegate.registry.claims import promoting
from tunegate.registry.judged import refuse_unjudged
from tunegate.registry.requested import refuse_changed, refuse_changed_parts
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.registry.signatures import fetch_signed_version
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

_WHAT = "approval"


def run(signing: SigningSettings, *, registry: str, request: str, output: Path) -> Manifest:
    """Moves the alias that a request names to the version that it names, when somebody approved that.

    The attempt is named by the request: an approval moves the alias once, from where it stood when it was asked for.

    Args:
        signing: whose signature counts.
        registry: a folder or URI.
        request: the request's digest, or its first letters.
        output: where the ``promotion`` artifact will be.

    Raises:
        InputError: when there is no such registry or request.
        ApprovalRefused: when nobody approved it, the approval does not count, or something changed since, naming what.
        ArtifactError: naming each file of the version that is not its own, why its signature does not count, or what
            the verdict is not about.
        ConflictError: when the approval was used before and the alias was moved since, or it was asked for by a
            retraining and a newer one has claimed the alias.
    """
    storage = open_storage(registry)
    storage.refuse_absent()
    asked = find_request(storage, request)
    decision = _approval(storage, asked)
    refuse_used(storage, asked.alias, asked.digest, what=_WHAT)
    signing = dataclasses.replace(signing, require_signature=signing.require_signature or asked.rules.require_signature)
    refuse_unusable_signing(signing, signs=False)

    parents = {"request": asked.digest, "decision": decision.digest, **asked.parts}
    document = {"registry": storage.uri, "signing": signing.method}
    refuse_foreign_output(output, kind="promotion", parents=parents, settings=document)
    return produce(
        output,
        kind="promotion",
        parents=parents,
        settings=document,
        build=lambda folder: _promote(folder, storage, asked, decision, signing),
    )


def _approval(storage: Storage, request: Request) -> Decision:
    decision = read_decision(storage, request.digest)
    if decision is None:
        raise ApprovalRefused(
            f"Nobody has approved the request {request.digest[:12]} yet.",
            seen="no decision",
            expected="an approval",
            remedy=f"tunegate approve {request.digest[:12]} --registry {storage.uri} --reason '…'",
        )
    refuse_invalid(request, decision)
    return decision


def _promote(folder: Path, storage: Storage, request: Request, decision: Decision, signing: SigningSettings) -> None:
    used = any(record.attempt == request.digest for record in history(storage, request.alias))
    if not used:  # else the alias moved because of this very request
        refuse_changed(storage, request)
    with tempfile.TemporaryDirectory(prefix="tunegate-version-") as scratch:
        copy = Path(scratch) / "version"
        say("promote", f"verifying {request.version[:12]} in {storage.uri}")
        fetch_signed_version(storage, request.version, copy, signing)
        verdict = refuse_changed_parts(request, copy)
        refuse_unjudged(verdict, request.parts)
    alias = Alias(request.alias, read_alias(storage, request.alias).record, request.generation)
    claim = parse_claim(request.claim)
    refuse_foreign_claim(claim, request.alias)
    move = promote(
        storage,
        alias,
        request.version,
        verdict=request.parts["verdict"],
        attempt=request.digest,
        note=decision.reason,
        approval=request.digest,
        made_from=claim.made_from if claim else "",
        guard=promoting(storage, claim),
    )
    if not move.moved:
        refuse_used(storage, request.alias, request.digest, what=_WHAT)
    say("promote", f"{request.alias} → {request.version[:12]}" + ("" if move.moved else " (was done before)"))
    write_outcome(folder, Outcome(storage, move, verdict, signed=signing.method != "none", approval=decision))
