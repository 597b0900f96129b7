"""The artifacts of a finished run as the parts of a version: verified, and exactly those that the gate let through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.champion import read_champion
from tunegate.contracts.errors import ArtifactError, ConflictError, GateRefused
from tunegate.contracts.manifest import verify
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.registry.aliases import Alias
from tunegate.registry.lineage import ROLE
from tunegate.registry.versions import Part

_NOT_JUDGED = ("verdict", ROLE)


@dataclass(frozen=True)
class Judged:
    """What the gate let through.

    Attributes:
        parts: folder inside the version → its artifact, each byte of it verified.
        verdict: the gate's, which says PASS on these very bytes.
    """

    parts: Mapping[str, Part]
    verdict: Verdict

    @property
    def digests(self) -> dict[str, str]:
        """Part → content digest."""
        return {role: part.manifest.content_digest for role, part in self.parts.items()}


def read_judged(
    *,
    verdict: Path,
    adapter: Path,
    merged: Path,
    quantized: Path,
    evaluations: Mapping[str, Path],
    parity: Path | None,
    champion: Path | None = None,
    serving: Path | None = None,
) -> Judged:
    """Verifies the artifacts of a run, and that they may be promoted.

    Args:
        champion: what the models were compared with, where the gate was given one; see :func:`refuse_other_champion`.

    Raises:
        GateRefused: when the verdict is not PASS.
        ArtifactError: when an artifact does not verify, or is not what the verdict is about.
    """
    parts = {"verdict": _part(verdict, "verdict"), "adapter": _part(adapter, "adapter")}
    parts |= {"merged": _part(merged, "merged"), "quantized": _part(quantized, "quantized")}
    parts |= {f"evaluations/{role}": _part(folder, "evaluation") for role, folder in sorted(evaluations.items())}
    if parity is not None:
        parts["parity"] = _part(parity, "parity")
    if champion is not None:
        parts["champion"] = _part(champion, "champion")
    if serving is not None:
        parts["serving"] = _part(serving, "serving")
    judged = Judged(parts, read_verdict(verdict))
    refuse_unjudged(judged.verdict, judged.digests)
    return judged


def refuse_unjudged(verdict: Verdict, digests: Mapping[str, str]) -> None:
    """Lets through what the verdict is about and says PASS of, however it is promoted.

    Args:
        verdict: the gate's.
        digests: part → content digest; the verdict itself and the lineage are judged by nobody.

    Errors are those of :func:`refuse_other_subjects` and :func:`refuse_unless_passed`.
    """
    refuse_other_subjects(verdict, {role: d for role, d in digests.items() if role not in _NOT_JUDGED})
    refuse_unless_passed(verdict)


def refuse_other_champion(judged: Judged, alias: Alias) -> None:
    """Lets through what was compared with the champion that the alias still points at.

    Args:
        judged: what the gate let through. What was compared with no champion is let through.
        alias: as it is now, before anything is moved.

    Raises:
        ConflictError: when the alias is another one, or was moved since.
    """
    part = judged.parts.get("champion")
    champion = read_champion(part.folder) if part else None
    if champion is None or not champion.asked or (champion.alias, champion.record) == (alias.name, alias.record):
        return
    raise ConflictError(
        f"What was judged was compared with another champion than {alias.name} points at: nothing was promoted.",
        seen=f"{alias.name} at record {alias.record or 'none'}",
        expected=f"{champion.alias} at record {champion.record or 'none'}, as when it was compared",
        remedy="compare with the champion of now: run evaluate_champion and the gate again",
    )


def _part(folder: Path, kind: str) -> Part:
    return Part(folder, verify(folder, kind=kind))


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
