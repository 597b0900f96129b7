"""The gate: evaluations in, verdict out. A FAIL is a result here, not an exception: what follows depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, evaluation_rows_digest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.champion import absent, check_champion, read_found
from tunegate.gate.counted import counted
from tunegate.gate.evidence import PROFILE_NAME, Evaluation, check_evidence, read_evaluation
from tunegate.gate.given import Given, verified
from tunegate.gate.judge import Judged, Paired, decide, judge_rules, prepare_rules
from tunegate.gate.markdown import verdict_markdown
from tunegate.gate.page import verdict_page
from tunegate.gate.parity import check_parity, read_parity
from tunegate.gate.policy import Policy, parse_policy
from tunegate.gate.questions import read_questions
from tunegate.gate.serving import check_serving, read_serving
from tunegate.gate.settings import GateSettings
from tunegate.gate.slices import watch_slices
from tunegate.models.training import TRAINING_NAME


def run(
    settings: GateSettings,
    *,
    dataset: Path,
    evaluations: Mapping[str, Path],
    adapter: Path,
    merged: Path,
    quantized: Path,
    output: Path,
    parity: Path | None = None,
    serving: Path | None = None,
    champion: Path | None = None,
    registry: str = "",
) -> Manifest:
    """Judges the evaluations by the policy.

    Args:
        settings: the policy.
        dataset: what prepare wrote.
        evaluations: ``base``, ``merged``, ``quantized`` → what evaluate wrote. One that is absent is a FAIL.
        adapter, merged, quantized: what would be promoted.
        output: where the ``verdict`` artifact will be.
        parity: what parity wrote. Where the policy has limits on it, an absent one is a FAIL.
        serving: what serve_check wrote. Where the policy requires it, an absent one is a FAIL.
        champion: what evaluate_champion wrote. Where the policy compares with a champion, an absent one is a FAIL.
        registry: a folder or URI whose ledger counts how often the evaluation rows have judged; empty: nobody counts.

    Raises:
        InputError: when there is no such registry.
        PolicyError: when the policy cannot be judged.
        ArtifactError: when an input does not verify: what was tampered with is not judged at all.
    """
    policy = parse_policy(settings.policy)
    models = {"dataset": dataset, "adapter": adapter, "merged": merged, "quantized": quantized}
    given = verified({**models, "parity": parity, "serving": serving, "champion": champion}, evaluations)
    document = settings_document(settings)
    refuse_foreign_output(output, kind="verdict", parents=given.subjects, settings=document)

    say("gate", f"judging {len(policy.checks)} checks at {policy.confidence:.0%} confidence")
    verdict, judged = _judge(policy, given)
    if registry:
        verdict = counted(verdict, policy, registry=registry, rows=evaluation_rows_digest(given.manifests["dataset"]))
    say("gate", f"{verdict.decision}: {verdict.summary}")
    return produce(
        output,
        kind="verdict",
        parents=given.subjects,
        settings=document,
        build=lambda folder: _write(folder, verdict, judged, policy, dataset, settings.rows_shown),
    )


def _judge(policy: Policy, given: Given) -> tuple[Verdict, list[Judged]]:
    """The verdict, and the policy's rules with the rows behind them, broken slices included."""
    best = read_found(given.folders.get("champion"))
    evaluations = {role: read_evaluation(role, folder) for role, folder in given.evaluations.items()}
    evaluations.update(best.evaluations)
    prepared = prepare_rules(policy, evaluations, no_champion=absent(policy, best))
    pairs = [item for item in prepared if isinstance(item, Paired)]
    watched = watch_slices(pairs, alpha=policy.alpha, min_rows=policy.min_slice_rows)
    judged = [*judge_rules(prepared, alpha=policy.alpha), *watched.broken]
    checks = [
        *_evidence(policy, given, evaluations),
        *check_champion(policy, best),
        *([watched.check] if watched.check else []),
    ]
    return decide(checks, judged=judged, subjects=given.subjects, policy=policy), judged


def _evidence(policy: Policy, given: Given, evaluations: Mapping[str, Evaluation]) -> list[Check]:
    """What the comparisons rest on, and the reports with their limits."""
    folders, manifests = given.folders, given.manifests
    checks = check_evidence(
        evaluations,
        artifacts=manifests,
        profile=folders["dataset"] / PROFILE_NAME,
        training=folders["adapter"] / TRAINING_NAME,
        limits=policy.max_overlap_rows,
    )
    parity = read_parity(folders["parity"], manifests["parity"]) if "parity" in folders else None
    checks += check_parity(policy.parity, parity, artifacts=manifests)
    serving = read_serving(folders["serving"], manifests["serving"]) if "serving" in folders else None
    evaluation = given.subjects.get("evaluations/quantized")
    return checks + check_serving(policy.serving, serving, artifacts=manifests, evaluation=evaluation)


def _write(
    folder: Path, verdict: Verdict, judged: list[Judged], policy: Policy, dataset: Path, rows_shown: int
) -> None:
    verdict.write(folder)
    (folder / "policy.json").write_bytes(pretty_json(policy.to_json()))
    (folder / "verdict.md").write_text(verdict_markdown(verdict), "utf-8")
    questions = read_questions(dataset, [row.row_id for item in judged for row in item.shown[:rows_shown]])
    html = verdict_page(verdict, judged, policy, questions, rows_shown=rows_shown)
    (folder / "page.html").write_text(html, "utf-8")
    counts = Counter(check.decision for check in verdict.checks)
    summary = {
        "decision": verdict.decision,
        "checks_passed": counts.get("PASS", 0),
        "checks_failed": counts.get("FAIL", 0),
        "checks_inconclusive": counts.get("INCONCLUSIVE", 0),
        "reason": verdict.summary,
    }
    (folder / "summary.json").write_bytes(pretty_json(summary))
