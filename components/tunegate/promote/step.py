"""Promotion: everything is verified again, the version is published, the alias moves last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import ArtifactError, ConflictError, GateRefused
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.promote.settings import PromoteSettings
from tunegate.registry.aliases import Move, check_alias_name, history, read_alias
from tunegate.registry.aliases import promote as move_alias
from tunegate.registry.records import Record, read_record
from tunegate.registry.versions import Part, publish
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

SCHEMA_VERSION = 1


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
) -> Manifest:
    """Publishes the version and moves the alias.

    The attempt is named by the verdict's content digest: however often a promotion is tried, it happens at most once,
    and a late retry does not undo what others did since.

    Args:
        settings: which alias.
        verdict: what the gate wrote.
        adapter, merged, quantized: what the gate judged.
        evaluations: role → what it was judged by.
        registry: a folder or URI.
        output: where the ``promotion`` artifact will be.
        parity: the report that the gate judged with them, where it was given one.

    Raises:
        InputError: when the registry's folder or bucket does not exist.
        GateRefused: when the verdict is not PASS. The registry is as it was.
        ArtifactError: when an input does not verify, or is not what the verdict is about.
        ConflictError: when the alias was moved by somebody else meanwhile, or since this verdict was used.
    """
    check_alias_name(settings.alias)
    storage = open_storage(registry)
    storage.refuse_absent()  # a pod would make a folder on its own disk, and lose it with that
    parts = {"verdict": _part(verdict, "verdict"), "adapter": _part(adapter, "adapter")}
    parts |= {"merged": _part(merged, "merged"), "quantized": _part(quantized, "quantized")}
    parts |= {f"evaluations/{role}": _part(folder, "evaluation") for role, folder in sorted(evaluations.items())}
    if parity is not None:
        parts["parity"] = _part(parity, "parity")
    judgement = read_verdict(verdict)
    parents = {role: part.manifest.content_digest for role, part in parts.items()}
    refuse_other_subjects(judgement, {role: digest for role, digest in parents.items() if role != "verdict"})
    refuse_unless_passed(judgement)

    refuse_used_verdict(storage, settings.alias, parents["verdict"])

    document = {**settings_document(settings), "registry": storage.uri}
    refuse_foreign_output(output, kind="promotion", parents=parents, settings=document)
    return produce(
        output,
        kind="promotion",
        parents=parents,
        settings=document,
        build=lambda folder: _promote(folder, settings, storage, parts, judgement),
    )


def refuse_unless_passed(verdict: Verdict) -> None:
    """Lets a verdict through that says PASS and whose every check does.

    Raises:
        GateRefused: for FAIL and INCONCLUSIVE, with the reasons.
        ArtifactError: for a PASS that its own checks contradict.
    """
    against = [check for check in verdict.checks if check.decision != "PASS"]
    if verdict.decision != "PASS":
        raise GateRefused(
            f"The gate said {verdict.decision}: nothing was promoted.",
            seen=verdict.summary,
            expected="PASS on every check",
            remedy="read the verdict's page; train again, or evaluate on more rows where it is inconclusive",
            items=[f"{check.decision} {check.rule}: {check.reason}" for check in against],
        )
    if against or not verdict.checks:
        raise ArtifactError(
            "The verdict says PASS, and its checks do not.",
            seen=f"{len(against)} of {len(verdict.checks)} checks are not PASS",
            expected="at least one check, and PASS on each",
            remedy="do not use this verdict: it was not written by the gate",
            items=[f"{check.decision} {check.rule}" for check in against],
        )


def refuse_other_subjects(verdict: Verdict, given: Mapping[str, str]) -> None:
    """Lets through exactly what was judged. The data set is judged and not promoted.

    Raises:
        ArtifactError: naming each artifact that is not the one that was judged.
    """
    judged = {role: digest for role, digest in verdict.subjects.items() if role != "dataset"}
    wrong = [
        f"{role}: given {given.get(role, 'nothing')}, judged {judged.get(role, 'nothing')}"
        for role in sorted(judged.keys() | given.keys())
        if judged.get(role) != given.get(role)
    ]
    if wrong:
        raise ArtifactError(
            "The verdict is about other artifacts.",
            seen=f"{len(wrong)} of {len(judged.keys() | given.keys())} artifacts differ from those that were judged",
            expected="exactly the bytes that were judged",
            remedy="run the gate on these artifacts, or promote those that it judged",
            items=wrong,
        )


def refuse_used_verdict(storage: Storage, alias: str, attempt: str) -> None:
    """Lets a retry through while the alias points at what the attempt promoted, and the first try always.

    Raises:
        ConflictError: when the attempt was carried out and the alias was moved elsewhere since.
    """
    records = history(storage, alias)
    used = next((record for record in records if record.attempt == attempt), None)
    if used is None or records[0].version == used.version:
        return
    now = records[0]
    raise ConflictError(
        f"This verdict was already used: nothing was promoted, and {alias} stays where it was moved since.",
        seen=f"{alias} points at {now.version} ({now.action}, {now.created}); the verdict promoted {used.version}",
        expected="a verdict that was not used yet, or an alias that still points at what it promoted",
        remedy="leave it if the move was meant; to serve that version again, roll back to it or promote a new verdict",
    )


def _part(folder: Path, kind: str) -> Part:
    return Part(folder, verify(folder, kind=kind))


def _promote(
    folder: Path, settings: PromoteSettings, storage: Storage, parts: Mapping[str, Part], verdict: Verdict
) -> None:
    alias = read_alias(storage, settings.alias)
    digest = parts["verdict"].manifest.content_digest
    say("promote", f"publishing to {storage.uri}")
    version = publish(storage, parts)
    move = move_alias(storage, alias, version, verdict=digest, attempt=digest, note=settings.note)
    if not move.moved:
        refuse_used_verdict(storage, settings.alias, digest)
    say("promote", f"{settings.alias} → {move.record.version[:12]}" + ("" if move.moved else " (was done before)"))
    previous = read_record(storage, move.record.previous).version if move.record.previous else None
    document = {
        "schema_version": SCHEMA_VERSION,
        "alias": settings.alias,
        "version": move.record.version,
        "record": move.record.digest,
        "registry": storage.uri,
        "previous": previous,
    }
    (folder / "promotion.json").write_bytes(pretty_json(document))
    size = sum(entry.size_bytes for part in parts.values() for entry in part.manifest.files)
    summary = {"alias": settings.alias, "version": move.record.version, "version_bytes": size, "files": _count(parts)}
    (folder / "summary.json").write_bytes(pretty_json(summary))
    earlier = _until(history(storage, settings.alias), move)
    (folder / "page.html").write_text(_page(document, parts, verdict, earlier), "utf-8")


def _count(parts: Mapping[str, Part]) -> int:
    return sum(len(part.manifest.files) + 1 for part in parts.values())


def _until(records: list[Record], move: Move) -> list[Record]:
    """The history up to this move: the same whenever the page is written."""
    digests = [record.digest for record in records]
    return records[digests.index(move.record.digest) :]


def _page(document: Mapping[str, object], parts: Mapping[str, Part], verdict: Verdict, earlier: list[Record]) -> str:
    shown = {name: document[name] or "nothing" for name in ("alias", "version", "previous", "registry")}
    sections = [
        Section("Promotion", paragraph(verdict.summary) + facts(shown), "The previous version is one rollback away."),
        Section(
            "What the version holds",
            table(
                ("part", "files", "bytes", "content digest"),
                [
                    (
                        role,
                        len(part.manifest.files),
                        sum(e.size_bytes for e in part.manifest.files),
                        part.manifest.content_digest,
                    )
                    for role, part in parts.items()
                ],
            ),
        ),
        Section(
            f"History of {document['alias']}",
            table(
                ("version", "action", "verdict", "note"),
                [(r.version[:12], r.action, r.verdict[:12], r.note) for r in earlier[:20]],
            ),
            "Newest first.",
        ),
    ]
    return page(f"Promoted: {document['alias']}", sections, subtitle=str(document["registry"]))
