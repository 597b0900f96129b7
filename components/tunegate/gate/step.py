"""The gate: evaluations in, verdict out. A FAIL is a result here, not an exception: what follows depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, evaluation_rows_digest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.contracts.verdict import Verdict
from tunegate.gate.champion import absent, check_champion, read_found
from tunegate.gate.counted import counted
from tunegate.gate.evidence import PROFILE_NAME, check_evidence, read_evaluation
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
    artifacts = {
        "dataset": verify(dataset, kind="dataset"),
        "adapter": verify(adapter, kind="adapter"),
        "merged": verify(merged, kind="merged"),
        "quantized": verify(quantized, kind="quantized"),
    }
    subjects = {role: manifest.content_digest for role, manifest in artifacts.items()}
    for role, folder in sorted(evaluations.items()):
        subjects[f"evaluations/{role}"] = verify(folder, kind="evaluation").content_digest
    measured = None
    if parity is not None:
        measured = verify(parity, kind="parity")
        subjects["parity"] = measured.content_digest
    served = None
    if serving is not None:
        served = verify(serving, kind="serving")
        subjects["serving"] = served.content_digest
    if champion is not None:
        subjects["champion"] = verify(champion, kind="champion").content_digest
    document = settings_document(settings)
    refuse_foreign_output(output, kind="verdict", parents=subjects, settings=document)

    say("gate", f"judging {len(policy.checks)} checks at {policy.confidence:.0%} confidence")
    best = read_found(champion)
    found = {role: read_evaluation(role, folder) for role, folder in sorted(evaluations.items())}
    found.update(best.evaluations)
    evidence = check_evidence(
        found,
        artifacts=artifacts,
        profile=dataset / PROFILE_NAME,
        training=adapter / TRAINING_NAME,
        limits=policy.max_overlap_rows,
    )
    report = read_parity(parity, measured) if parity is not None and measured is not None else None
    evidence += check_parity(policy.parity, report, artifacts=artifacts)
    evidence += check_serving(
        policy.serving,
        read_serving(serving, served) if serving is not None and served is not None else None,
        artifacts=artifacts,
        evaluation=subjects.get("evaluations/quantized"),
    )
    evidence += check_champion(policy, best)
    prepared = prepare_rules(policy, found, no_champion=absent(policy, best))
    judged = judge_rules(prepared, alpha=policy.alpha)
    pairs = [item for item in prepared if isinstance(item, Paired)]
    watched = watch_slices(pairs, alpha=policy.alpha, min_rows=policy.min_slice_rows)
    judged += watched.broken
    evidence += [watched.check] if watched.check else []
    verdict = decide(evidence, judged=judged, subjects=subjects, policy=policy)
    if registry:
        verdict = counted(verdict, policy, registry=registry, rows=evaluation_rows_digest(artifacts["dataset"]))
    say("gate", f"{verdict.decision}: {verdict.summary}")
    return produce(
        output,
        kind="verdict",
        parents=subjects,
        settings=document,
        build=lambda folder: _write(folder, verdict, judged, policy, dataset, settings.rows_shown),
    )


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
