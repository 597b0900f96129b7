"""Limits on parity: they hold or fail by what was measured of these very models, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, PolicyError
from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.policy import parse_policy

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any

COMPARISON = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.1}
MERGE = {"reference": "adapter", "candidate": "merged", "max_mean_kl": 1e-4, "min_top1_agreement": 0.99}
QUANTIZATION = {"reference": "merged", "candidate": "quantized", "max_mean_kl": 0.05, "max_token_kl": 2.0}


@pytest.fixture
def judged(finished: Run) -> Run:
    """A run that passes, its parity within limits that the policy sets."""
    finished.policy["parity"] = [MERGE, QUANTIZATION]
    finished.parity = {}
    return finished


def parity_checks(verdict: Verdict) -> dict[str, Check]:
    return {check.rule: check for check in verdict.checks if "parity" in check.rule}


def failed(verdict: Verdict) -> list[Check]:
    assert verdict.decision == "FAIL"
    return [check for check in parity_checks(verdict).values() if check.decision == "FAIL"]


def test_models_within_the_limits_pass_and_the_report_is_bound_to_the_verdict(judged: Run) -> None:
    verdict = judged.judge()
    assert verdict.decision == "PASS"
    found = parity_checks(verdict)
    assert list(found) == [
        "parity is of these models",
        "parity: merged against adapter (max mean kl 0.0001)",
        "parity: merged against adapter (min top1 agreement 0.99)",
        "parity: quantized against merged (max mean kl 0.05)",
        "parity: quantized against merged (max token kl 2)",
    ]
    limit = found["parity: quantized against merged (max mean kl 0.05)"]
    assert (limit.estimate, limit.threshold) == (0.01, 0.05)
    assert limit.reason == "0.01 on 100 tokens of 4 rows; the noise floor is 1e-09"
    assert "parity" in verdict.subjects
    for place in ("page.html", "verdict.md"):
        assert "quantized against merged (max mean kl 0.05)" in (judged.folder / "verdict" / place).read_text("utf-8")


@pytest.mark.parametrize(
    ("pair", "figure", "value"),
    [
        ("merged against adapter", "mean_kl", 2e-4),
        ("merged against adapter", "top1_agreement", 0.98),
        ("quantized against merged", "max_token_kl", 2.1),
    ],
)
def test_a_broken_limit_fails_and_names_layer_and_rows(judged: Run, pair: str, figure: str, value: float) -> None:
    judged.parity = {"pairs": {pair: {figure: value}}}
    (check,) = failed(judged.judge())
    assert pair in check.rule
    assert check.estimate == value
    assert "grows most in model.layers.1" in check.reason
    assert check.rows == ("row 7", "row 9")


@pytest.mark.parametrize("value", [None, "0.0", True, float("nan"), float("-inf"), -0.5, [0.0], 10**400])
def test_a_figure_that_is_no_possible_number_fails(judged: Run, value: Any) -> None:
    judged.parity = {"pairs": {"merged against adapter": {"mean_kl": value}}}
    (check,) = failed(judged.judge())
    assert "has no mean kl" in check.reason


def test_an_agreement_above_all_tokens_is_no_agreement(judged: Run) -> None:
    judged.parity = {"pairs": {"merged against adapter": {"top1_agreement": 1.5}}}
    (check,) = failed(judged.judge())
    assert "has no top1 agreement" in check.reason


@pytest.mark.parametrize("pairs", [None, [], {"merged against adapter": 1}])
def test_a_pair_that_was_not_compared_fails_every_limit_on_it(judged: Run, pairs: Any) -> None:
    judged.parity = {"pairs": pairs, "without": ("pairs",)}
    assert len(failed(judged.judge())) == 4


def test_limits_without_a_report_fail_every_one(judged: Run) -> None:
    judged.parity = None
    verdict = judged.judge()
    assert failed(verdict)[0].reason == "there is no parity report"
    assert len(failed(verdict)) == 5
    assert "parity" not in verdict.subjects


@pytest.mark.parametrize("name", ["adapter", "merged", "quantized", "validation_rows", "base"])
@pytest.mark.parametrize("where", ["report", "manifest"])
def test_a_report_of_something_else_fails_whatever_its_figures(judged: Run, name: str, where: str) -> None:
    judged.parity = {where: {name: "0" * 64}}
    found = failed(judged.judge())
    assert f"its {where} is about {name} 000000000000" in found[0].reason
    assert len(found) == 5


@pytest.mark.parametrize("where", ["report", "manifest"])
def test_a_report_that_leaves_out_what_it_is_about_fails(judged: Run, where: str) -> None:
    judged.parity = {where: {"merged": None}}
    assert "is about merged unknown" in failed(judged.judge())[0].reason


def test_a_foreign_report_fails_a_policy_without_limits_too(judged: Run) -> None:
    del judged.policy["parity"]
    judged.parity = {"report": {"merged": "0" * 64}}
    assert len(failed(judged.judge())) == 1


def test_a_policy_without_limits_needs_no_report(judged: Run) -> None:
    del judged.policy["parity"]
    judged.parity = None
    verdict = judged.judge()
    assert (verdict.decision, parity_checks(verdict)) == ("PASS", {})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 0}, "counts no rows"),
        ({"tokens": None}, "counts no tokens"),
        ({"schema_version": 2}, "cannot be read"),
        ({"digests": "all"}, "is about adapter unknown"),
    ],
)
def test_a_report_of_nothing_or_of_another_form_fails(judged: Run, change: dict[str, Any], says: str) -> None:
    judged.parity = {"top": change}
    found = failed(judged.judge())
    assert says in found[0].reason
    assert len(found) == 5


def test_a_report_that_cannot_be_read_fails_and_one_that_was_changed_is_refused(judged: Run) -> None:
    judged.without.add("parity/parity.json")
    assert "cannot be read" in failed(judged.judge())[0].reason
    judged.without.clear()
    judged.folder = judged.folder / "again"
    judged.write()
    path = judged.inputs["parity"] / "parity.json"
    path.write_bytes(path.read_bytes().replace(b"0.01", b"0.00"))
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        judged.judge_written()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"reference": "merged", "candidate": "merged", "max_mean_kl": 1}, "is not compared"),
        ({"reference": "merged", "candidate": "quantized"}, "sets no limit"),
        ({**MERGE, "max_mean_kl": 0}, "out of range"),
        ({**MERGE, "min_top1_agreement": 99}, "out of range"),
        ({**MERGE, "max_mean_lk": 1}, "did you mean 'max_mean_kl'"),
        ({**MERGE, "reference": "base"}, "unknown value"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_refused(rule: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        parse_policy({"checks": [COMPARISON], "parity": [rule]})


def test_a_pair_that_is_limited_twice_is_refused() -> None:
    with pytest.raises(PolicyError, match="more than once"):
        parse_policy({"checks": [COMPARISON], "parity": [MERGE, MERGE]})


def test_limits_are_part_of_the_policys_digest() -> None:
    plain = parse_policy({"checks": [COMPARISON]})
    limited = parse_policy({"checks": [COMPARISON], "parity": [MERGE]})
    looser = parse_policy({"checks": [COMPARISON], "parity": [{**MERGE, "max_mean_kl": 1.0}]})
    assert len({plain.digest, limited.digest, looser.digest}) == 3
