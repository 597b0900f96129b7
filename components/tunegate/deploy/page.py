"""What a deployment did, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, facts, paragraph, table

_COLUMNS = (
    "share of the traffic, %", "asked", "failed", "counted by its servers", "failures counted",
    "95 % within, s", "what served: 95 % within, s",
)  # fmt: skip


def deployment_page(document: Mapping[str, Any]) -> str:
    """The page of a ``deployment.json``."""
    names = ("alias", "version", "model", "replaced", "service", "namespace", "url", "storage_uri", "probes")
    shown = {name.replace("_", " "): document[name] or "nothing" for name in names}
    probes = f"{document['probes']} probes" if document["probes"] else "no probes: it serves unchecked (check: none)"
    served = badge("PASS" if document["probes"] else "UNCHECKED") + facts(shown)
    served += paragraph(f"Each server was asked for its digest, which it computes of its own files, and for {probes}.")
    rows = [tuple("" if value is None else value for value in share.values()) for share in document["shares"]]
    sections = [Section("Served", served)]
    if rows:
        sections.append(Section("Canary", table(_COLUMNS, rows), "Its servers count the requests of users and ours."))
    return page("Deployment", sections, subtitle=f"{document['alias']} on {document['service']}")
