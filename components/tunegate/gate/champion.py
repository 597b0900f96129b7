"""The champion that a model is compared with. That there is none is said by the policy, never taken from silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunegate.contracts.champion import CHAMPION_ROLES, Champion, read_champion
from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.verdict import Check, Decision
from tunegate.gate.evidence import Evaluation, read_evaluation
from tunegate.gate.policy import Policy

RULE = "the champion is known"


@dataclass(frozen=True)
class Absent:
    """How a comparison with a champion ends while there is none."""

    decision: Decision
    reason: str


@dataclass(frozen=True)
class Found:
    """What a champion artifact says, as far as it could be read.

    Attributes:
        champion: what it says; None when there is no artifact or it could not be read.
        evaluations: role → the champion's evaluation on this run's rows.
        problem: why there is nothing.
    """

    champion: Champion | None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    problem: str = ""


def read_found(folder: Path | None) -> Found:
    """Reads a champion artifact; what cannot be read is said in ``problem``: it fails what needs it."""
    if folder is None:
        return Found(None, problem="nobody looked for a champion")
    try:
        champion = read_champion(folder)
    except ArtifactError as error:
        return Found(None, problem=f"{error.failed} Seen: {error.seen}.")
    return Found(champion, {role: read_evaluation(role, folder / role) for role in champion.evaluations})


def check_champion(policy: Policy, found: Found) -> list[Check]:
    """Whether the champion that the policy compares with is known; nothing where it compares with none."""
    roles = [role for role in CHAMPION_ROLES if any(rule.reference == role for rule in policy.checks)]
    if not roles:
        return []
    champion = found.champion
    if champion is None:
        return [Check(RULE, "FAIL", found.problem)]
    problems = [f"nobody looked for {role}" for role in roles if role not in champion.asked]
    if champion.version is not None:
        problems += [f"no evaluation of {role}" for role in roles if role not in found.evaluations]
        problems += [_foreign(role, e, champion) for role, e in found.evaluations.items()]
    broken = "; ".join(filter(None, problems))
    at = f"version {champion.version[:12]}" if champion.version else "nothing yet"
    told = f"{champion.alias} points at {at}, generation {champion.generation}"
    return [Check(RULE, "FAIL" if broken else "PASS", broken or told)]


def absent(policy: Policy, found: Found) -> Absent | None:
    """How comparisons with the champion end when there is none; None when there is one, or nobody knows."""
    if found.champion is None or found.champion.version is not None:
        return None
    why = f"no champion: {found.champion.alias} points at nothing yet, and there is nothing to compare with"
    if policy.when_no_champion == "pass":
        return Absent("PASS", f"{why}; the policy says when_no_champion: pass")
    return Absent("FAIL", f"{why}; the first promotion of an alias needs 'when_no_champion: pass' in the policy")


def _foreign(role: str, evaluation: Evaluation, champion: Champion) -> str:
    """Why an evaluation is of another model; empty when it is not."""
    seen, wanted = evaluation.results.get("model_digest"), champion.models.get(role)
    return "" if wanted and seen == wanted else f"the evaluation called {role} is of model {seen}, not of {wanted}"
