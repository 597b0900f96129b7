"""The gate as a whole: what passes, what does not, and that nothing missing or foreign ever does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, InputError, OutputExistsError, PolicyError
from tunegate.contracts.manifest import MANIFEST_NAME, read_manifest, verify
from tunegate.contracts.verdict import Check, Verdict, read_verdict
from tunegate.gate.settings import GateSettings
from tunegate.gate.step import run

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any


def _check(verdict: Verdict, text: str) -> Check:
    return next(check for check in verdict.checks if text in check.rule)


def test_a_model_that_shows_its_gain_and_keeps_it_when_quantized_passes(finished: Run) -> None:
    verdict = finished.judge()
    assert (verdict.decision, {check.decision for check in verdict.checks}) == ("PASS", {"PASS"})
    gain, margin, floor = (_check(verdict, kind) for kind in ("required gain", "margin", "floor"))
    assert (gain.estimate, gain.threshold) == (0.5, 0.25)
    assert gain.lower is not None
    assert 0.25 < gain.lower < 0.5
    assert margin.lower is not None
    assert (margin.estimate, margin.threshold, margin.rows) == (0.0, -0.1, ("0000000000000000",))
    assert floor.estimate == 0.5
    manifest = verify(finished.folder / "verdict", kind="verdict")
    assert set(verdict.subjects) == {"dataset", "adapter", "merged", "quantized"} | {
        f"evaluations/{role}" for role in finished.roles
    }
    assert dict(manifest.parents) == dict(verdict.subjects)


def test_rows_that_have_judged_too_often_are_said_to_be_worn_out_and_a_retry_does_not_count(finished: Run) -> None:
    finished.write()
    registry = finished.folder / "registry"
    registry.mkdir()
    found = []
    for confidence, name in ((0.95, "one"), (0.94, "two"), (0.93, "three"), (0.93, "again")):
        settings = GateSettings({**finished.policy, "confidence": confidence, "max_judgements": 2})
        output = finished.folder / name
        run(settings, **finished.inputs, output=output, registry=str(registry))
        verdict = read_verdict(output)
        found.append((verdict.judgement, len(verdict.warnings), verdict.decision))
    assert found == [(1, 0, "PASS"), (2, 0, "PASS"), (3, 1, "PASS"), (3, 1, "PASS")]
    for name in ("verdict.md", "page.html"):
        assert "have judged 3 times" in (finished.folder / "three" / name).read_text()
    with pytest.raises(InputError):
        run(settings, **finished.inputs, output=finished.folder / "x", registry=str(finished.folder / "no registry"))


def test_the_verdict_is_the_same_bytes_whenever_it_is_made(finished: Run) -> None:
    finished.judge()
    again = run(GateSettings(finished.policy), **finished.inputs, output=finished.folder / "again")
    assert again.content_digest == read_manifest(finished.folder / "verdict").content_digest
    assert run(GateSettings(finished.policy), **finished.inputs, output=finished.folder / "again") == verify(
        finished.folder / "again"
    )
    with pytest.raises(OutputExistsError, match=r"settings\.policy differs"):
        run(GateSettings({**finished.policy, "confidence": 0.9}), **finished.inputs, output=finished.folder / "again")


def test_a_gain_that_is_seen_but_not_shown_is_inconclusive_and_says_how_many_rows(finished: Run) -> None:
    for role in ("merged", "quantized"):
        finished.scores[role] = [1.0] * 30 + [0.0] * 70
    verdict = finished.judge()
    check = _check(verdict, "required gain")
    assert (verdict.decision, check.decision) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert check.rows_needed is not None
    assert 100 < check.rows_needed < 1000
    assert f"about {check.rows_needed} such rows" in check.reason


def test_no_gain_at_all_fails_and_names_the_rows_that_stayed_wrong(finished: Run) -> None:
    for role in ("merged", "quantized"):
        finished.scores[role] = [1.0] * 5 + [0.0] * 95
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert "tool_call.exact: merged against base" in verdict.summary
    assert _check(verdict, "required gain").rows[0] == f"{5:016x}"
    assert _check(verdict, "floor").decision == "FAIL"


def test_harm_by_quantization_fails_and_names_the_rows_that_got_worse(finished: Run) -> None:
    finished.scores["quantized"] = [0.0] * 25 + [1.0] * 25 + [0.0] * 50
    verdict = finished.judge()
    check = _check(verdict, "margin")
    assert (verdict.decision, check.decision) == ("FAIL", "FAIL")
    assert check.rows == tuple(f"{number:016x}" for number in range(20))
    page = (finished.folder / "verdict/page.html").read_text()
    assert "question &lt;0000000000000000&gt;" in page
    assert "merged says 1 &lt;b&gt;" in page
    assert "quantized says 0 &lt;b&gt;" in page
    assert not re.search(r"says \d <b>", page)
    assert "| FAIL | tool_call.exact: quantized against merged" in (finished.folder / "verdict/verdict.md").read_text()
    summary = json.loads((finished.folder / "verdict/summary.json").read_text())
    assert (summary["decision"], summary["checks_failed"]) == ("FAIL", 2)


def test_a_loss_within_the_noise_of_few_rows_is_not_let_through(finished: Run) -> None:
    """The plain 'not significantly worse' passes this; a non-inferiority bound must not."""
    for role in finished.roles:
        finished.scores[role] = finished.scores[role][:30]
    finished.scores["merged"] = [1.0] * 30
    finished.scores["quantized"] = [0.0, 0.0, 0.0] + [1.0] * 27
    assert _check(finished.judge(), "margin").decision == "INCONCLUSIVE"


def test_many_comparisons_of_which_one_is_barely_below_its_margin_are_no_fail_by_chance(finished: Run) -> None:
    """Uncorrected, a model that keeps every margin would be called worse the more often, the more it is asked."""
    merged = [1.0] * 90 + [0.0] * 10
    finished.scores = {"base": [0.0] * 100, "merged": merged, "quantized": [0.0] * 16 + [1.0] * 74 + [0.0] * 10}
    margin = finished.policy["checks"][1]
    finished.policy["checks"] = [margin]
    alone = finished.judge()
    assert (alone.decision, _check(alone, "margin").rows_needed) == ("FAIL", None)
    finished.folder = finished.folder / "among others"
    finished.policy["checks"] = [
        margin,
        {**margin, "margin": 0.4, "reference": "base"},
        {**margin, "margin": 0.4, "candidate": "merged", "reference": "base"},
        {**margin, "margin": 0.4, "candidate": "merged", "reference": "quantized"},
    ]
    among = finished.judge()
    check = _check(among, "quantized against merged")
    assert (among.decision, check.decision) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert "among so many comparisons this is not shown yet (Holm)" in check.reason
    assert check.upper is not None
    assert check.upper < -0.1


def test_a_required_gain_of_nothing_needs_the_exact_mcnemar_test(finished: Run) -> None:
    """Four rows gained and none lost is a gain by the score's bound, and comes up 1 time in 16 by chance."""
    gain = {**finished.policy["checks"][0], "required_gain": 0}
    finished.policy["checks"][0] = gain
    for role in ("merged", "quantized"):
        finished.scores[role] = [1.0] * 4 + [0.0] * 96
    finished.policy["checks"][2]["floor"] = 0.0
    verdict = finished.judge()
    assert _check(verdict, "required gain").decision == "INCONCLUSIVE"
    finished.folder = finished.folder / "one more"
    for role in ("merged", "quantized"):
        finished.scores[role] = [1.0] * 5 + [0.0] * 95
    assert finished.judge().decision == "PASS"


def _changed(field: str, value: Any, row: int = 3) -> Any:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**r, field: value} if i == row else r for i, r in enumerate(rows)]

    return change


ROW_FAULTS: dict[str, tuple[Any, str]] = {
    "a row is missing": (lambda rows: rows[1:], "rows are missing"),
    "a row is doubled": (lambda rows: [*rows, rows[0]], "more than once"),
    "a row is another's": (_changed("row_id", "f" * 16), "not scored on the same rows"),
    "a score is NaN": (_changed("score", float("nan")), "not finite"),
    "a score is infinite": (_changed("score", float("inf")), "not finite"),
    "a score is no 0 or 1": (_changed("score", 0.5), "out of range"),
    "a score is empty": (_changed("score", None), "other columns"),
    "a prompt differs": (_changed("prompt_digest", "other"), "not asked the same"),
    "the metric is missing": (lambda rows: [{**row, "metric": "valid"} for row in rows], "no rows"),
    "the task is missing": (lambda rows: [{**row, "task": "other"} for row in rows], "no rows"),
    "there are no rows": (lambda rows: [], "no rows"),
    "a column is missing": (lambda rows: [{k: r[k] for k in r if k != "answer"} for r in rows], "other columns"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
@pytest.mark.parametrize("role", ["merged", "quantized"])
def test_rows_that_cannot_be_paired_fail_with_the_reason(finished: Run, role: str, fault: str) -> None:
    finished.rows[role], says = ROW_FAULTS[fault]
    verdict = finished.judge()
    check = _check(verdict, "margin")
    assert (verdict.decision, check.decision) == ("FAIL", "FAIL")
    assert says in check.reason or says in _check(verdict, "complete").reason


ENGINE = {"name": "lm-evaluation-harness", "torch": "2.13.0", "dtype": "float32", "device": "cpu", "batch_size": 8}
RESULT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_digest": "0" * 64}, "of model 000000000000"),
    "no model": ({"model_digest": None}, "of model unknown"),
    "another data set": ({"evaluation_rows_digest": "0" * 64}, "rows 000000000000"),
    "no data set": ({"evaluation_rows_digest": None}, "rows unknown"),
    "other rows": ({"rows_digest": "0" * 64}, "rows differ"),
    "no rows": ({"rows_digest": None}, "does not say on which rows"),
    "a task without rows": ({"tasks": {}}, "rows are missing"),
    "tasks that are no mapping": ({"tasks": []}, "rows are missing"),
    "other settings": ({"settings": {"max_new_tokens": 8}}, "settings.max_new_tokens differs"),
    "no settings": ({"settings": None}, "with which settings"),
    "another engine": ({"engine": {**ENGINE, "name": "vllm"}}, "engine.name differs"),
    "another version": ({"engine": {**ENGINE, "torch": "2.12.0"}}, "engine.torch differs"),
    "another dtype": ({"engine": {**ENGINE, "dtype": "bfloat16"}}, "engine.dtype differs"),
    "another device": ({"engine": {**ENGINE, "device": "cuda"}}, "engine.device differs"),
    "an engine that leaves out its dtype": (
        {"engine": {name: value for name, value in ENGINE.items() if name != "dtype"}},
        "engine.dtype differs",
    ),
    "no engine": ({"engine": None}, "with which engine"),
    "an empty engine": ({"engine": {}}, "with which engine"),
}


@pytest.mark.parametrize("fault", RESULT_FAULTS)
@pytest.mark.parametrize("role", ["base", "merged", "quantized"])
def test_an_evaluation_of_something_else_fails_with_the_reason(finished: Run, role: str, fault: str) -> None:
    finished.results[role], says = RESULT_FAULTS[fault]
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert any(says in check.reason and check.decision == "FAIL" for check in verdict.checks)


def test_engines_that_agree_in_all_but_the_batch_size_pass(finished: Run) -> None:
    finished.results["quantized"] = {"engine": {**ENGINE, "batch_size": 2}}
    assert finished.judge().decision == "PASS"


def test_three_evaluations_without_an_engine_are_not_called_alike(finished: Run) -> None:
    finished.results = {role: {"engine": None} for role in finished.roles}
    check = _check(finished.judge(), "same way")
    assert check.decision == "FAIL"
    assert all(f"{role} does not say with which engine" in check.reason for role in finished.roles)


@pytest.mark.parametrize("name", ["results.json", "rows.parquet"])
@pytest.mark.parametrize("role", ["base", "merged", "quantized"])
def test_a_missing_file_of_an_evaluation_fails(finished: Run, role: str, name: str) -> None:
    finished.without.add(f"{role}/{name}")
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert name in _check(verdict, "complete").reason


@pytest.mark.parametrize("role", ["base", "merged", "quantized"])
def test_a_missing_evaluation_fails(finished: Run, role: str) -> None:
    finished.roles = tuple(other for other in finished.roles if other != role)
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert f"no evaluation of the {role} model" in _check(verdict, "complete").reason


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ({"overlap": {"exact": 1, "near": 0}}, "1 exact and 0 near"),
        ({"overlap": {"exact": 0, "near": 2}}, "0 exact and 2 near"),
        ({"overlap": {"exact": 0}}, "counts no near"),
        ({"overlap": {"exact": False, "near": 0}}, "counts no exact"),
        ({}, "counts no exact and no near"),
        ([], "cannot be read"),
    ],
)
def test_overlap_between_train_and_evaluation_rows_fails(finished: Run, profile: Any, says: str) -> None:
    finished.profile = profile
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert says in _check(verdict, "overlap").reason


def test_overlap_that_the_policy_allows_passes(finished: Run) -> None:
    finished.profile = {"overlap": {"exact": 1, "near": 2}}
    finished.policy["max_overlap_rows"] = {"exact": 1, "near": 2}
    assert finished.judge().decision == "PASS"


@pytest.mark.parametrize("kind", ["adapter", "merged", "quantized"])
def test_models_that_were_not_made_from_each_other_fail(finished: Run, kind: str) -> None:
    finished.parents[kind] = {"other": "0" * 64}
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert kind in _check(verdict, "descend").reason


SAME = "tokenizer and template are the same"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_a_quantized_model_with_another_tokenizer_template_or_end_fails_with_the_file(finished: Run, name: str) -> None:
    finished.companions[name] = "another"
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert f"quantized: {name}: " in _check(verdict, SAME).reason


@pytest.mark.parametrize(
    ("role", "name"),
    [("adapter", "tokenizer.json"), ("merged", "generation_config.json"), ("quantized", "tokenizer.json")],
)
def test_a_stage_that_lost_a_file_of_the_tokenizer_or_template_fails(finished: Run, role: str, name: str) -> None:
    finished.without.add(f"{role}/{name}")
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert _check(verdict, SAME).reason == f"{role}: {name}: missing"


def test_an_adapter_that_does_not_say_with_which_template_it_was_trained_fails(finished: Run) -> None:
    finished.without.add("adapter/training.json")
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert "training.json" in _check(verdict, SAME).reason


@pytest.mark.parametrize("parent", ["model", "dataset"])
def test_a_quantized_model_of_another_model_or_calibrated_on_other_data_fails(finished: Run, parent: str) -> None:
    finished.judge()
    right = dict(read_manifest(finished.folder / "quantized").parents)
    finished.folder = finished.folder / "again"
    finished.parents["quantized"] = {**right, parent: "0" * 64}
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    said = {"model": "quantized was not made from this merged", "dataset": "quantized was not made from this dataset"}
    assert _check(verdict, "descend").reason == said[parent]


LOSS = {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1,
        "direction": "lower", "score_range": [0, 20]}  # fmt: skip


def test_real_scores_pass_only_with_a_declared_worst_case_that_holds(finished: Run) -> None:
    finished.scores = {role: [2.0 + row / 50 for row in range(100)] for role in finished.roles}
    finished.policy["checks"] = [LOSS]
    verdict = finished.judge()
    assert verdict.decision == "INCONCLUSIVE"
    finished.folder = finished.folder / "declared"
    finished.policy["checks"] = [{**LOSS, "max_row_loss": 1.0}]
    verdict = finished.judge()
    assert verdict.decision == "PASS"
    assert "assumes that no row loses more than 1" in _check(verdict, "margin").reason
    finished.folder = finished.folder / "broken"
    finished.scores["quantized"][7] += 1.5
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    assert _check(verdict, "margin").rows == (f"{7:016x}",)
    assert "assumes that no row loses more than 1; 1 of these rows did" in _check(verdict, "margin").reason


def test_lower_is_better_is_not_read_the_wrong_way_round(finished: Run) -> None:
    finished.scores = {role: [2.0] * 300 for role in finished.roles}
    finished.policy["checks"] = [{**LOSS, "max_row_loss": 1.0}]
    finished.scores["quantized"] = [2.5] * 300
    check = _check(finished.judge(), "margin")
    assert check.estimate == -0.5
    assert check.decision != "PASS"


@pytest.mark.parametrize("ceiling", [0.4, 0.6])
def test_a_ceiling_is_broken_from_above(finished: Run, ceiling: float) -> None:
    limit = {"task": "tool_call", "metric": "exact", "candidate": "quantized", "ceiling": ceiling}
    finished.policy["checks"][2] = limit
    assert finished.judge().decision == ("PASS" if ceiling == 0.6 else "FAIL")


def _every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_one_changed_byte_in_any_input_is_refused_and_nothing_is_judged(finished: Run) -> None:
    finished.write()
    models = (finished.inputs[kind] for kind in ("dataset", "adapter", "merged", "quantized"))
    folders = [*finished.inputs["evaluations"].values(), *models]
    for path in (path for folder in folders for path in _every_file(folder)):
        data = path.read_bytes()
        at = data.index(b"sha256") + 12 if path.name == MANIFEST_NAME else len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ArtifactError, match=path.name):
            run(GateSettings(finished.policy), **finished.inputs, output=finished.folder / "verdict")
        path.write_bytes(data)
    assert not (finished.folder / "verdict").exists()
    with pytest.raises(ArtifactError, match="wrong kind"):
        run(
            GateSettings(finished.policy),
            **{**finished.inputs, "merged": finished.inputs["quantized"]},
            output=finished.folder / "verdict",
        )


def test_a_policy_that_cannot_be_judged_stops_the_gate_before_it_reads_anything(tmp_path: Path) -> None:
    absent = {name: tmp_path / name for name in ("dataset", "adapter", "merged", "quantized")}
    with pytest.raises(PolicyError):
        run(GateSettings({"checks": []}), **absent, evaluations={}, output=tmp_path / "verdict")


@pytest.mark.parametrize("step", ["gate", "promote"])
def test_the_judging_steps_load_none_of_the_heavy_libraries(step: str) -> None:
    """What takes seconds to start and does not serve to judge. (How long it takes depends on the machine.)"""
    heavy = "{'torch', 'kfp', 'transformers', 'scipy', 'pyarrow', 'peft', 'trl', 'datasets'}"
    probe = f"import tunegate.{step}.step, sys; print(*({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
