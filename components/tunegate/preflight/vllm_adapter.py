"""Whether the pinned vLLM loads an adapter, and why not, without vLLM and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import LintError, SettingsError
from tunegate.contracts.vllm import DEFAULT_SERVED_RANK, SERVED_RANKS, VLLM, smallest_served
from tunegate.preflight.adapter_folder import CannotTell, read_adapter_folder
from tunegate.preflight.adapter_rules import ADAPTER_RULES
from tunegate.preflight.lint import Linted, Unchecked
from tunegate.preflight.rule import Finding, Severity


@dataclass(frozen=True)
class AdapterVerdict:
    """What becomes of an adapter in vLLM.

    Attributes:
        loads: whether no reason was found for which vLLM refuses it. What loads may still answer otherwise than what
            was trained: such findings are errors as well.
        linted: every finding, and what could not be checked.
    """

    loads: bool
    linted: Linted

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"loads": self.loads, **self.linted.to_json()}


def lint_adapter(
    adapter: Path, *, base: Path | None = None, max_lora_rank: int = DEFAULT_SERVED_RANK
) -> AdapterVerdict:
    """Looks at an adapter's configuration and file headers, and at those of its base.

    Args:
        adapter: a folder in PEFT's format.
        base: the folder of the model that it will be served on; without one, what depends on it is not checked.
        max_lora_rank: what vLLM is started with.

    Raises:
        InputError: when there is no such folder, the base cannot be read, or vLLM has no such ``max_lora_rank``.
    """
    if max_lora_rank not in SERVED_RANKS:
        raise SettingsError(
            f"{VLLM} has no such max_lora_rank.",
            seen=str(max_lora_rank),
            expected=f"one of {', '.join(map(str, SERVED_RANKS))}",
            remedy=f"give {smallest_served(max_lora_rank) or SERVED_RANKS[-1]}, as the server is started",
        )
    folder = read_adapter_folder(adapter, base=base, max_lora_rank=max_lora_rank)
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    loads = True
    for rule in ADAPTER_RULES:
        try:
            reasons = list(rule.find(folder))
        except CannotTell as why:
            unchecked.append(Unchecked(rule.id, str(why)))
            continue
        for reason in reasons:
            severity: Severity = "warning" if reason.outcome == "note" else "error"
            findings.append(Finding(rule.id, severity, reason.seen, reason.remedy, rule.reference))
            loads = loads and reason.outcome != "refused"
    return AdapterVerdict(loads, Linted(tuple(findings), tuple(unchecked)))


def refuse_adapter(adapter: Path, verdict: AdapterVerdict) -> None:
    """Stops before an adapter is served that vLLM refuses, or serves otherwise than it was trained.

    Raises:
        LintError: with each error.
    """
    errors = [finding for finding in verdict.linted.findings if finding.severity == "error"]
    if errors:
        does = "loads in" if verdict.loads else "does not load in"
        raise LintError(
            f"The adapter in {adapter} {does} {VLLM}{', and must not be served' if verdict.loads else ''}.",
            seen="; ".join(finding.seen for finding in errors),
            expected="an adapter that it loads and serves as it was trained",
            remedy="; ".join(dict.fromkeys(finding.remedy for finding in errors)),
            items=[f"{finding.rule}: {finding.seen} ({finding.reference})" for finding in errors],
        )
