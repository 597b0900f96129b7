"""Promotion: everything is verified again, the version is published, the alias moves last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.claim import Claim, refuse_foreign_claim
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.promote.outcome import Outcome, refuse_used, write_outcome
from tunegate.promote.settings import PromoteSettings
from tunegate.registry.aliases import check_alias_name, history, read_alias
from tunegate.registry.aliases import promote as move_alias
from tunegate.registry.claims import promoting
from tunegate.registry.judged import Judged, read_judged, refuse_other_champion
from tunegate.registry.minimum import refuse_unasked
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.registry.signatures import publish_signed
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

_WHAT = "verdict"


def run(
    settings: PromoteSettings,
    *,
    verdict: Path,
    adapter: Path,
    merged: Path,
    quantized: Path,
    evaluations: Mapping[str, Path],
    registry: str,
    output: Path,
    parity: Path | None = None,
    champion: Path | None = None,
    serving: Path | None = None,
    signing: SigningSettings = SigningSettings(),  # noqa: B008 - frozen
    environment: Mapping[str, str] | None = None,
    claim: Claim | None = None,
) -> Manifest:
    """Publishes the version and moves the alias, where nobody's approval was asked for.

    The attempt is named by the verdict's content digest: however often a promotion is tried, it happens at most once,
    and a late retry does not undo what others did since.

    Args:
        settings: which alias.
        verdict: what the gate wrote.
        adapter, merged, quantized: what the gate judged.
        evaluations: role → what it was judged by.
        registry: a folder or URI.
        output: where the ``promotion`` artifact will be.
        parity, serving: the reports that the gate judged with them, where it was given them.
        champion: what they were compared with, likewise: the alias must still point at it.
        signing: how the version is signed.
        environment: where the signing key's password is found.
        claim: that of a retraining: the alias is moved only while nobody has a newer one.

    Raises:
        InputError: when the registry's folder or bucket does not exist, or asks for an approval or a signature, or the
            claim is on another alias.
        GateRefused: when the verdict is not PASS. The registry is as it was.
        ArtifactError: when an input does not verify, or is not what the verdict is about.
        ConflictError: when the alias was moved by somebody else meanwhile, or since this verdict was used, or a newer
            retraining has claimed it.
    """
    check_alias_name(settings.alias)
    refuse_foreign_claim(claim, settings.alias)
    refuse_unusable_signing(signing, signs=True)
    storage = open_storage(registry)
    storage.refuse_absent()  # a pod would make a folder on its own disk, and lose it with that
    refuse_unasked(storage, require_signature=signing.require_signature)
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
    refuse_used(storage, settings.alias, judged.digests["verdict"], what=_WHAT)

    document = {**settings_document(settings), "registry": storage.uri, "signing": signing.method}
    if claim is not None:
        document["claim"] = claim.to_json()
    refuse_foreign_output(output, kind="promotion", parents=judged.digests, settings=document)
    return produce(
        output,
        kind="promotion",
        parents=judged.digests,
        settings=document,
        build=lambda folder: _promote(folder, settings, storage, judged, signing, environment or {}, claim),
    )


def _promote(
    folder: Path,
    settings: PromoteSettings,
    storage: Storage,
    judged: Judged,
    signing: SigningSettings,
    environment: Mapping[str, str],
    claim: Claim | None,
) -> None:
    alias = read_alias(storage, settings.alias)
    digest = judged.digests["verdict"]
    if not any(record.attempt == digest for record in history(storage, alias.name)):  # else it moved for this verdict
        refuse_other_champion(judged, alias)
    say("promote", f"publishing to {storage.uri}")
    version = publish_signed(storage, judged.parts, signing, environment)
    move = move_alias(
        storage,
        alias,
        version,
        verdict=digest,
        attempt=digest,
        note=settings.note,
        made_from=claim.made_from if claim else "",
        guard=promoting(storage, claim),
    )
    if not move.moved:
        refuse_used(storage, settings.alias, digest, what=_WHAT)
    say("promote", f"{settings.alias} → {move.record.version[:12]}" + ("" if move.moved else " (was done before)"))
    write_outcome(folder, Outcome(storage, move, judged.verdict, signed=signing.method != "none"))
