"""What serves is part of what is judged: not checked, foreign, or answering otherwise is never a pass."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, PolicyError
from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.policy import parse_policy

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any

COMPARISON = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.1}


@pytest.fixture
def judged(finished: Run) -> Run:
    """A run that passes, whose policy requires that it was served."""
    finished.policy["serving"] = {}
    finished.serving = {}
    return finished


def serving_checks(verdict: Verdict) -> dict[str, Check]:
    return {check.rule: check for check in verdict.checks if "serv" in check.rule}


def failed(verdict: Verdict) -> list[Check]:
    assert verdict.decision == "FAIL"
    return [check for check in verdict.checks if check.decision == "FAIL"]


def test_a_model_that_serves_as_evaluated_passes_and_the_report_is_bound_to_the_verdict(judged: Run) -> None:
    verdict = judged.judge()
    assert verdict.decision == "PASS"
    assert list(serving_checks(verdict)) == [
        "serving report is of this model",
        "what serves was checked",
        "served under its content digest",
        "serving was asked what could have differed",
        "the server renders conversations as evaluation does",
        "served answers end where evaluated ones do",
        "serving: min agreement 1",
        "serving: max times noise 3",
    ]
    assert serving_checks(verdict)["serving: max times noise 3"].estimate == 2.0
    assert "serving" in verdict.subjects


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"agreement": 0.95}, "serving: min agreement 1"),
        ({"agreement": None}, "serving: min agreement 1"),
        ({"agreement": 1.5}, "serving: min agreement 1"),
        ({"rendered": 0.9}, "the server renders conversations as evaluation does"),
        ({"ended": 0.9}, "served answers end where evaluated ones do"),
        ({"ended": True}, "served answers end where evaluated ones do"),
        ({"served_name": "0" * 64}, "served under its content digest"),
        ({"certain_tokens": 0}, "serving was asked what could have differed"),
        ({"rows": None}, "serving was asked what could have differed"),
        ({"logprobs": {"mean": 0.004, "max": 0.2}}, "serving: max times noise 3"),
        ({"logprobs": {"mean": None, "max": None}}, "serving: max times noise 3"),
        ({"noise": {"mean": 0.0}}, "serving: max times noise 3"),
        ({"noise": None}, "serving: max times noise 3"),
    ],
)
def test_what_serves_otherwise_or_says_nothing_fails(judged: Run, change: dict[str, Any], rule: str) -> None:
    judged.serving = {"top": change}
    assert [check.rule for check in failed(judged.judge())] == [rule]


def test_a_broken_rule_names_its_rows(judged: Run) -> None:
    judged.serving = {"top": {"agreement": 0.9, "ended": 0.9}}
    assert [check.rows for check in failed(judged.judge())] == [("row 3",), ("row 3",)]


@pytest.mark.parametrize(
    ("limit", "holds", "breaks"),
    [
        ({"max_mean_logprob_difference": 0.01}, {}, {"logprobs": {"mean": 0.011, "max": 0.2}}),
        ({"max_logprob_difference": 0.5}, {}, {"logprobs": {"mean": 0.002, "max": 0.6}}),
        ({"min_same_answers": 0.9}, {"same_answers": 0.9}, {"same_answers": 0.89}),
        ({"min_same_answers": 0.9}, {"same_answers": 1.0}, {"same_answers": None}),
        ({"min_agreement": 0.9}, {"agreement": 0.9}, {"agreement": 0.89}),
        (
            {"max_score_loss": 0.1},
            {"scores": {"tool_call.exact": {"rows": 20, "served": 0.45, "evaluated": 0.5}}},
            {"scores": {"tool_call.exact": {"rows": 20, "served": 0.35, "evaluated": 0.5}}},
        ),
        (
            {"max_score_loss": 0.0},
            {"scores": {"t.m": {"rows": 20, "served": 0.75, "evaluated": 0.5}}},
            {"scores": {"t.m": {"rows": 20, "served": None, "evaluated": 0.5}}},
        ),
        ({"max_score_loss": 0.0}, {"scores": {"t.m": {"rows": 1, "served": 1, "evaluated": 1}}}, {"scores": {}}),
    ],
)
def test_limits_of_the_policy_hold_or_fail_by_what_was_measured(
    judged: Run, limit: dict[str, Any], holds: dict[str, Any], breaks: dict[str, Any]
) -> None:
    judged.policy["serving"] = {**limit, "max_times_noise": None}
    judged.serving = {"top": holds}
    assert judged.judge().decision == "PASS"
    judged.folder, judged.serving = judged.folder / "again", {"top": breaks}
    (check,) = failed(judged.judge())
    assert check.rule.startswith("serving: ")


@pytest.mark.parametrize("name", ["model", "validation_rows", "evaluation"])
@pytest.mark.parametrize("where", ["report", "manifest"])
@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_a_report_of_something_else_fails_whatever_its_figures(
    judged: Run, name: str, where: str, digest: str | None
) -> None:
    judged.serving = {where: {name: digest}}
    first, *_ = failed(judged.judge())
    assert f"its {where} is about {name}" in first.reason


def test_a_run_that_was_not_checked_fails_where_the_policy_requires_it(judged: Run) -> None:
    judged.serving = {"top": {"checked": False, "reason": "serve_check.enabled is false"}}
    (check,) = failed(judged.judge())
    assert (check.rule, check.reason) == ("what serves was checked", "not checked: serve_check.enabled is false")


def test_a_missing_report_fails_where_the_policy_requires_one(judged: Run) -> None:
    judged.serving = None
    (check,) = failed(judged.judge())
    assert check.reason == "there is no serving report"


@pytest.mark.parametrize("section", [None, {"required": False}])
def test_a_run_that_was_not_checked_passes_a_policy_that_does_not_require_it(judged: Run, section: Any) -> None:
    judged.policy["serving"] = section
    judged.serving = {"top": {"checked": False, "reason": "serve_check.enabled is false"}}
    verdict = judged.judge()
    assert verdict.decision == "PASS"
    assert serving_checks(verdict)["what serves was checked"].reason == "not checked: serve_check.enabled is false"


def test_what_was_checked_must_hold_though_the_policy_says_nothing_of_it(judged: Run) -> None:
    del judged.policy["serving"]
    judged.serving = {"top": {"agreement": 0.5}}
    assert [check.rule for check in failed(judged.judge())] == ["serving: min agreement 1"]
    judged.folder, judged.serving = judged.folder / "again", {"report": {"model": "0" * 64}}
    assert failed(judged.judge())


def test_a_report_that_cannot_be_read_fails_and_one_that_was_changed_is_refused(judged: Run) -> None:
    judged.without.add("serving/serving.json")
    assert "cannot be read" in failed(judged.judge())[0].reason
    judged.without.clear()
    judged.folder = judged.folder / "again"
    judged.write()
    path = judged.inputs["serving"] / "serving.json"
    path.write_bytes(path.read_bytes().replace(b"0.002", b"0.001"))
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        judged.judge_written()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"min_agrement": 1}, "did you mean 'min_agreement'"),
        ({"min_agreement": 99}, "out of range"),
        ({"max_times_noise": 0}, "out of range"),
        ([], "wrong type"),
    ],
)
def test_a_section_that_cannot_be_judged_is_refused(section: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        parse_policy({"checks": [COMPARISON], "serving": section})
