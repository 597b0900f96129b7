"""Asking for approval: the version is put into the registry with no alias on it, and beside it a request names it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.approve.page import Asked, request_page
from tunegate.approve.settings import ApproveSettings, rules_of
from tunegate.approve.webhook import tell
from tunegate.contracts.approval import DECISIONS, Identity, Request, Rules, utc_now
from tunegate.contracts.approval_rules import refuse_unknown_requester, refuse_unusable
from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.claim import Claim, refuse_foreign_claim
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.registry.aliases import check_alias_name, current, read_alias
from tunegate.registry.approvals import open_request, write_request
from tunegate.registry.judged import Judged, read_judged, refuse_other_champion
from tunegate.registry.minimum import refuse_looser
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.registry.signatures import publish_signed
from tunegate.registry.versions import show_version
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

KIND = "request"
REQUEST_NAME = "request.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Asking:
    """Who asks for what, and under which rules.

    Attributes:
        alias: which alias would move.
        requester: who asks.
        settings: who may answer, and until when.
        signing: how the version is signed.
        environment: where secrets are found: the signing key's password, the webhook's address.
        claim: that of the retraining which asks; None for any other run.
    """

    alias: str
    requester: Identity
    settings: ApproveSettings
    signing: SigningSettings
    environment: Mapping[str, str]
    claim: Claim | None = None


def run(
    asking: Asking,
    *,
    verdict: Path,
    adapter: Path,
    merged: Path,
    quantized: Path,
    evaluations: Mapping[str, Path],
    parity: Path | None,
    registry: str,
    output: Path,
    champion: Path | None = None,
    serving: Path | None = None,
) -> Manifest:
    """Publishes the version, writes the request, and ends: nobody is waited for.

    Args:
        asking: who asks for what.
        verdict, adapter, merged, quantized, evaluations, parity, champion, serving: what the gate judged, and what it
            said.
        registry: a folder or URI.
        output: where the ``request`` artifact will be: the request and the page that shows it.

    Raises:
        InputError: when the registry or the settings cannot be used, or are looser than the registry allows, or nobody
            knows who asks, or the claim is on another alias.
        GateRefused: when the verdict is not PASS.
        ArtifactError: when an artifact does not verify, or is not what the verdict is about.
        ConflictError: when the alias was moved since the models were compared with what it pointed at.
    """
    check_alias_name(asking.alias)
    refuse_foreign_claim(asking.claim, asking.alias)
    refuse_unusable_signing(asking.signing, signs=True)
    rules = _rules(asking)
    refuse_unusable(rules, where="recipe.approve")
    refuse_unknown_requester(rules, asking.requester)
    storage = open_storage(registry)
    storage.refuse_absent()
    refuse_looser(storage, rules)
    judged = read_judged(
        verdict=verdict,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        evaluations=evaluations,
        parity=parity,
        champion=champion,
        serving=serving,
    )
    document = {
        **settings_document(asking.settings),
        "alias": asking.alias,
        "requester": asking.requester.name,
        "registry": storage.uri,
        "signing": asking.signing.method,
    }
    if asking.claim is not None:
        document["claim"] = asking.claim.to_json()
    refuse_foreign_output(output, kind=KIND, parents=judged.digests, settings=document)
    return produce(
        output,
        kind=KIND,
        parents=judged.digests,
        settings=document,
        build=lambda folder: _ask(folder, asking, storage, judged, evaluations),
    )


def _rules(asking: Asking) -> Rules:
    """What is signed when it is asked for must be verified when it is promoted."""
    signed = asking.signing.require_signature or asking.signing.method != "none"
    return rules_of(asking.settings, require_signature=signed)


def _ask(folder: Path, asking: Asking, storage: Storage, judged: Judged, evaluations: Mapping[str, Path]) -> None:
    say("approve", f"publishing to {storage.uri}, with no alias on it")
    version = publish_signed(storage, judged.parts, asking.signing, asking.environment)
    request = _request(asking, storage, version, judged)
    refuse_other_champion(judged, read_alias(storage, asking.alias))
    open_already = open_request(storage, request, utc_now())
    if open_already is None:
        write_request(storage, request)
        tell(request, None, registry=storage.uri, environment=asking.environment)
    else:
        request = open_already
    for word in DECISIONS:
        say("approve", f"to {word}: tunegate {word} {request.digest[:12]} --registry {storage.uri} --reason '…'")
    asked = Asked(request, storage.uri, judged.verdict, evaluations, signed=asking.signing.method != "none")
    written = {
        "schema_version": SCHEMA_VERSION,
        "request": request.digest,
        "registry": storage.uri,
        "document": request.to_json(),
    }
    (folder / REQUEST_NAME).write_bytes(pretty_json(written))
    (folder / "page.html").write_text(request_page(asked), "utf-8")
    summary = {
        "request": request.digest,
        "alias": request.alias,
        "version": request.version,
        "expires": request.expires,
        "requester": request.requester.name,
    }
    (folder / "summary.json").write_bytes(pretty_json(summary))


def _request(asking: Asking, storage: Storage, version: str, judged: Judged) -> Request:
    now = utc_now()
    alias = read_alias(storage, asking.alias)  # read after the upload, which may take long
    pointed = current(storage, asking.alias)
    rules = _rules(asking)
    minimum = refuse_looser(storage, rules)
    expires = now + datetime.timedelta(seconds=asking.settings.expires_seconds)
    return Request(
        alias=asking.alias,
        generation=alias.generation,
        current=pointed.version if pointed else None,
        version=version,
        parts=dict(show_version(storage, version).parents),
        policy_digest=judged.verdict.policy_digest,
        summary=judged.verdict.summary,
        requester=asking.requester,
        rules=rules,
        created=datetime.datetime.now(datetime.UTC).isoformat(),  # to the microsecond: asked again, it is another one
        expires=expires.isoformat(),
        use_before=(expires + datetime.timedelta(seconds=asking.settings.use_within_seconds)).isoformat(),
        minimum=minimum.to_json() if minimum else {},
        claim=asking.claim.to_json() if asking.claim else {},
    )
