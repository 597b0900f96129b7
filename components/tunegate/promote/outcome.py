"""What came of a promotion: the document, the figures and the page that both ways of promoting write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.approval import Decision
from tunegate.contracts.errors import ConflictError
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.verdict import Verdict
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, facts, paragraph, table
from tunegate.registry.aliases import Move, history
from tunegate.registry.records import Record, read_record
from tunegate.registry.versions import show_version
from tunegate.storage.interface import Storage

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """A promotion that is done.

    Attributes:
        storage: the registry.
        move: what the alias did, now or in an earlier try.
        verdict: the gate's.
        signed: whether a signature of the version was verified.
        approval: who approved it; None where nobody was asked.
    """

    storage: Storage
    move: Move
    verdict: Verdict
    signed: bool
    approval: Decision | None = None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Writes ``promotion.json``, ``summary.json`` and ``page.html``: the same bytes for the same move."""
    storage, record = outcome.storage, outcome.move.record
    version = show_version(storage, record.version)
    document = {
        "schema_version": SCHEMA_VERSION,
        "alias": record.alias,
        "version": record.version,
        "record": record.digest,
        "registry": storage.uri,
        "previous": read_record(storage, record.previous).version if record.previous else None,
        "signed": outcome.signed,
        "approval": outcome.approval.request if outcome.approval else None,
    }
    (folder / "promotion.json").write_bytes(pretty_json(document))
    size = sum(entry.size_bytes for entry in version.files)
    summary = {"alias": record.alias, "version": record.version, "version_bytes": size, "files": len(version.files)}
    (folder / "summary.json").write_bytes(pretty_json(summary))
    earlier = _until(history(storage, record.alias), record)
    (folder / "page.html").write_text(_page(document, outcome, version, earlier), "utf-8")


def refuse_used(storage: Storage, alias: str, attempt: str, *, what: str) -> None:
    """Lets a retry through while the alias points at what the attempt promoted, and the first try always.

    Args:
        storage: the registry.
        alias: which alias.
        attempt: what names the attempt in the alias's records.
        what: what the attempt used up: the verdict, or the approval.

    Raises:
        ConflictError: when the attempt was carried out and the alias was moved elsewhere since.
    """
    records = history(storage, alias)
    used = next((record for record in records if record.attempt == attempt), None)
    if used is None or records[0].version == used.version:
        return
    now = records[0]
    raise ConflictError(
        f"This {what} was already used: nothing was promoted, and {alias} stays where it was moved since.",
        seen=f"{alias} points at {now.version} ({now.action}, {now.created}); the {what} promoted {used.version}",
        expected=f"a {what} that was not used yet, or an alias that still points at what it promoted",
        remedy=f"leave it if the move was meant; to serve that version again, roll back to it or promote a new {what}",
    )


def _until(records: list[Record], record: Record) -> list[Record]:
    """The history up to this move: the same whenever the page is written."""
    digests = [found.digest for found in records]
    return records[digests.index(record.digest) :]


def _page(document: dict[str, object], outcome: Outcome, version: Manifest, earlier: list[Record]) -> str:
    shown = {name: document[name] or "nothing" for name in ("alias", "version", "previous", "registry")}
    shown["signature"] = "verified" if outcome.signed else "unsigned"
    sections = [
        Section(
            "Promotion", paragraph(outcome.verdict.summary) + facts(shown), "The previous version is one rollback away."
        ),
        *_approval(outcome.approval),
        Section("What the version holds", table(("part", "files", "bytes", "content digest"), _parts(version))),
        Section(
            f"History of {document['alias']}",
            table(
                ("version", "action", "verdict", "approval", "note"),
                [(r.version[:12], r.action, r.verdict[:12], r.approval[:12] or "none", r.note) for r in earlier[:20]],
            ),
            "Newest first.",
        ),
    ]
    return page(f"Promoted: {document['alias']}", sections, subtitle=str(document["registry"]))


def _approval(decision: Decision | None) -> list[Section]:
    if decision is None:
        return []
    told = {"approver": decision.approver.name, "known by": decision.approver.method, "at": decision.decided}
    body = badge("approved") + facts(told) + paragraph(decision.reason)
    return [Section("Approval", body, f"Request {decision.request}")]


def _parts(version: Manifest) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for role, digest in version.parents.items():
        sizes = [entry.size_bytes for entry in version.files if entry.path.startswith(f"{role}/")]
        rows.append((role, len(sizes), sum(sizes), digest))
    return rows
