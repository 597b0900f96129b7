"""A task's own rows that were trained on fail the gate, as the data set's do; an evaluation that does not say, too."""

from typing import Any

import pytest
from tests.gate.conftest import Run

from tunegate.contracts.verdict import Check
from tunegate.gate.policy import OverlapLimits
from tunegate.gate.task_overlap import check_task_overlap

LEAK = {"exact": 1, "near": 0, "examples": [{"row_id": "france"}]}


def _check(overlap: Any, limits: OverlapLimits = OverlapLimits()) -> list[Check]:  # noqa: B008 - frozen
    return check_task_overlap({"base": {"overlap": overlap}, "merged": {"overlap": overlap}}, limits)


def test_tasks_on_the_data_sets_rows_alone_need_no_check() -> None:
    assert _check({}) == []


@pytest.mark.parametrize(
    ("overlap", "says"),
    [
        ({"capitals": LEAK}, "capitals: 1 exact and 0 near (rows france)"),
        ({"capitals": {"exact": 0, "near": 2}}, "0 exact and 2 near"),
        ({"capitals": {"exact": 0}}, "counts no near overlap of capitals"),
        ({"capitals": {"exact": True, "near": -1}}, "counts no exact and no near"),
        ({"capitals": 0}, "counts no exact and no near"),
        (None, "base does not say"),
    ],
)
def test_a_task_row_that_was_trained_on_or_an_unknown_count_fails(overlap: Any, says: str) -> None:
    (check,) = _check(overlap)
    assert check.decision == "FAIL" and says in check.reason


def test_overlap_that_the_policy_allows_passes_and_is_told() -> None:
    (check,) = _check({"capitals": LEAK}, OverlapLimits(exact=1))
    assert (check.decision, check.reason) == ("PASS", "capitals: 1 exact and 0 near")


def test_the_verdict_of_a_run_whose_task_rows_were_trained_on_is_fail(finished: Run) -> None:
    finished.results["merged"] = {"overlap": {"capitals": LEAK}}
    verdict = finished.judge()
    assert verdict.decision == "FAIL"
    (broken,) = [check for check in verdict.checks if check.decision == "FAIL"]
    assert "tasks' own rows" in broken.rule and "france" in broken.reason
