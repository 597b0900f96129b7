"""What users have now: a model that is worse than the champion is not promoted, nor one that was never compared."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.contracts.errors import PolicyError
from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.policy import parse_policy

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any

AGAINST = [
    {
        "task": "tool_call",
        "metric": "exact",
        "candidate": "quantized",
        "reference": "champion_quantized",
        "margin": 0.1,
    },
    {"task": "tool_call", "metric": "exact", "candidate": "merged", "reference": "champion", "margin": 0.1},
]
EQUAL = [1.0] * 50 + [0.0] * 50


def _check(verdict: Verdict, text: str) -> Check:
    return next(check for check in verdict.checks if text in check.rule)


@pytest.fixture
def compared(finished: Run) -> Run:
    """A run whose policy compares with the champion, which is as good."""
    finished.policy["checks"] += AGAINST
    finished.champion = {"scores": {"champion": EQUAL, "champion_quantized": EQUAL}}
    return finished


def test_a_model_as_good_as_the_champion_passes_and_the_verdict_is_bound_to_it(compared: Run) -> None:
    verdict = compared.judge()
    assert verdict.decision == "PASS", verdict.summary
    assert _check(verdict, "champion is known").reason == "champion points at version vvvvvvvvvvvv, generation 3"
    assert _check(verdict, "quantized against champion_quantized").estimate == 0.0
    assert "champion" in verdict.subjects


def test_a_model_worse_than_the_champion_fails_though_it_is_better_than_its_base(compared: Run) -> None:
    compared.champion["scores"]["champion_quantized"] = [1.0] * 90 + [0.0] * 10
    verdict = compared.judge()
    assert verdict.decision == "FAIL"
    assert _check(verdict, "quantized against champion_quantized").decision == "FAIL"
    assert _check(verdict, "merged against base").decision == "PASS"


@pytest.mark.parametrize(("says", "decision"), [("pass", "PASS"), ("fail", "FAIL"), (None, "FAIL")])
def test_no_champion_passes_only_where_the_policy_says_so(compared: Run, says: str | None, decision: str) -> None:
    compared.champion = {}
    if says:
        compared.policy["when_no_champion"] = says
    verdict = compared.judge()
    assert verdict.decision == decision
    check = _check(verdict, "against champion_quantized")
    assert check.decision == decision
    assert "no champion: champion points at nothing yet" in check.reason
    assert "when_no_champion: pass" in check.reason


FAULTS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "nobody looked": (None, "nobody looked for a champion"),
    "a version without a record": ({"top": {"version": "v" * 64}}, "cannot be read as a champion"),
    "an alias that was read without its version": ({"top": {"record": "r" * 64, "generation": 2}}, "cannot be read"),
    "another schema": ({"top": {"schema_version": 9}}, "cannot be read as a champion"),
    "one that was not looked for": ({"top": {"asked": ["champion"]}}, "nobody looked for champion_quantized"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_champion_that_is_not_known_is_not_taken_for_none(compared: Run, fault: str) -> None:
    compared.policy["when_no_champion"] = "pass"
    compared.champion, says = FAULTS[fault]
    verdict = compared.judge()
    assert verdict.decision == "FAIL"
    assert says in _check(verdict, "champion is known").reason


def test_an_evaluation_of_another_model_or_on_other_rows_is_no_champions(compared: Run) -> None:
    compared.results["champion"] = {"model_digest": "0" * 64}
    assert "is of model 0000" in _check(compared.judge(), "champion is known").reason
    compared.folder = compared.folder / "rows"
    compared.results["champion"] = {"rows_digest": "0" * 64}
    verdict = compared.judge()
    assert verdict.decision == "FAIL"
    assert "rows differ" in _check(verdict, "same rows").reason


def test_a_missing_evaluation_of_a_champion_that_is_there_fails(compared: Run) -> None:
    del compared.champion["scores"]["champion"]
    verdict = compared.judge()
    assert verdict.decision == "FAIL"
    assert _check(verdict, "champion is known").reason == "no evaluation of champion"


def test_a_policy_that_compares_the_quantized_model_with_champions_alone_would_pass_anything_at_first() -> None:
    with pytest.raises(PolicyError, match="with another of its run"):
        parse_policy({"checks": AGAINST[:1], "when_no_champion": "pass"})


def test_an_evaluation_that_calls_itself_the_runs_own_is_no_champions(compared: Run) -> None:
    """A role ``merged`` there took the place of the run's own evaluation."""
    compared.champion["scores"] |= {"merged": EQUAL}
    compared.champion["top"] = {
        "evaluations": {"champion": "stored", "champion_quantized": "stored", "merged": "stored"}
    }
    known = _check(compared.judge(), "champion is known")
    assert known.decision == "FAIL" and "evaluation of merged, which is no champion" in known.reason
