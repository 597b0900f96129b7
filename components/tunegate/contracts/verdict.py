"""The gate's verdict: a decision, its reasons, and the digests it is bound to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import pretty_json, write_atomically

SCHEMA_VERSION = 1
VERDICT_NAME = "verdict.json"

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Check:
    """One rule of the policy, judged.

    Attributes:
        rule: what was asked, for example ``tool_call.exact: quantized against merged``.
        decision: PASS, FAIL or INCONCLUSIVE.
        reason: one sentence with the figures.
        estimate: the observed value or difference, when there is one.
        lower, upper: the one-sided confidence bounds at the policy's confidence.
        threshold: what it was held against.
        rows: ids of rows that decided it (those that got worse), the first few.
        rows_needed: for INCONCLUSIVE, about how many rows would decide it.
        shared: what the rows that got worse share, each a sentence with its counts.
    """

    rule: str
    decision: Decision
    reason: str
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    rows: tuple[str, ...] = ()
    rows_needed: int | None = None
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The whole judgement.

    Attributes:
        decision: FAIL if any check fails, else INCONCLUSIVE if any is, else PASS.
        summary: the decision in one sentence.
        checks: every rule, judged.
        subjects: role → content digest of each artifact that was judged; promotion compares them.
        policy_digest: sha256 of the policy's canonical JSON.
        warnings: what does not change the decision, and should be known with it.
        judgement: the how manieth judgement on these evaluation rows this is; None where nobody counts.
    """

    decision: Decision
    summary: str
    checks: tuple[Check, ...]
    subjects: Mapping[str, str]
    policy_digest: str
    warnings: tuple[str, ...] = ()
    judgement: int | None = None
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        """Writes ``verdict.json`` into ``folder``."""
        write_atomically(folder / VERDICT_NAME, pretty_json(dataclasses.asdict(self)))


def read_verdict(folder: Path) -> Verdict:
    """Reads ``verdict.json`` from a verdict artifact.

    Raises:
        ArtifactError: when it is absent or malformed: a verdict that cannot be read is no PASS.
    """
    path = folder / VERDICT_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        checks = tuple(_check(check) for check in document.pop("checks"))
        warnings = tuple(document.pop("warnings", ()))
        verdict = Verdict(checks=checks, warnings=warnings, **document)
        if verdict.schema_version != SCHEMA_VERSION or verdict.decision not in ("PASS", "FAIL", "INCONCLUSIVE"):
            raise ValueError(f"schema version {verdict.schema_version}, decision {verdict.decision!r}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a verdict.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a verdict of schema version {SCHEMA_VERSION}",
            remedy="run the gate again",
        ) from error
    return verdict


def _check(document: dict[str, Any]) -> Check:
    listed: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in document.items()}
    return Check(**listed)
