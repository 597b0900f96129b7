"""A report that another step wrote for the gate: read without trust, held against the artifacts it should be about."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.manifest import Manifest

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """A report as far as it could be read.

    Attributes:
        document: what it says; empty when it could not be read.
        manifest: of the artifact that holds it, verified.
        problem: why it could not be read; empty when it was.
    """

    document: Mapping[str, Any]
    manifest: Manifest
    problem: str = ""

    @property
    def told(self) -> dict[str, Mapping[str, Any]]:
        """What it is about, by name: by its own word and by its manifest's."""
        stated = self.document.get("digests")
        return {"report": stated if isinstance(stated, Mapping) else {}, "manifest": self.manifest.parents}


def read_report(folder: Path, manifest: Manifest, *, name: str) -> Report:
    """Reads the file ``name``; what cannot be read is said in ``problem``: it fails the gate rather than stops it."""
    try:
        document = json.loads((folder / name).read_text("utf-8"))
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"no report of schema version {SCHEMA_VERSION}")
    except (OSError, ValueError) as error:
        return Report({}, manifest, f"{name} cannot be read: {error}")
    return Report(document, manifest)


def about_others(report: Report, wanted: Mapping[str, str | None]) -> list[str]:
    """In what a report is about something else than ``wanted``: name → content digest, None for what there is not."""
    return [
        f"its {place} is about {name} {short(digests.get(name))}, not {short(digest)}"
        for place, digests in report.told.items()
        for name, digest in wanted.items()
        if digest is None or digests.get(name) != digest
    ]


def number(figures: object, name: str, *, lowest: float = 0.0, highest: float = sys.float_info.max) -> float | None:
    """A figure; None when it is no finite number, or one that cannot be."""
    value = figures.get(name) if isinstance(figures, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if lowest <= value <= highest else None


def is_count(value: object) -> bool:
    """Whether something was counted, and there was any."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def short(digest: object) -> str:
    """A digest as it is told to people."""
    return digest[:12] if isinstance(digest, str) and digest else "unknown"
