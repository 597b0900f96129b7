"""Slices: harm to some of the rows is not averaged away, and a slice that does well saves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunegate.contracts.verdict import Check, Verdict

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any
Rows = list[dict[str, Any]]


def _check(verdict: Verdict, text: str) -> Check:
    return next(check for check in verdict.checks if text in check.rule)


def tagged(tags: Callable[[int], list[str]]) -> Callable[[Rows], Rows]:
    """Gives the n-th row the tags of n."""
    return lambda rows: [{**row, "tags": tags(number)} for number, row in enumerate(rows)]


def _first_thirty(number: int) -> list[str]:
    return ["kind=rare" if number < 30 else "kind=common", "all=rows"]


@pytest.fixture
def sliced(finished: Run) -> Run:
    """200 rows of which the first 30 are rare; quantized and merged are right on all but the last ten."""
    right = [1.0] * 190 + [0.0] * 10
    finished.scores = {"base": [0.0] * 200, "merged": right, "quantized": list(right)}
    finished.rows = dict.fromkeys(finished.roles, tagged(_first_thirty))
    return finished


def test_slices_that_keep_their_margin_are_said_to_be_watched_and_pass_nothing_by_themselves(sliced: Run) -> None:
    verdict = sliced.judge()
    assert verdict.decision == "PASS", verdict.summary
    watched = _check(verdict, "no slice")
    assert watched.reason == "none of 2 slices of at least 20 rows in 1 comparisons, corrected together"
    sliced.folder = sliced.folder / "inconclusive"
    for role in sliced.roles:
        sliced.scores[role] = sliced.scores[role][:28]
    sliced.scores["quantized"] = [0.0] * 3 + sliced.scores["quantized"][3:]
    assert sliced.judge().decision == "INCONCLUSIVE"


def test_harm_to_a_slice_that_nobody_named_fails_though_the_mean_hardly_moves(sliced: Run) -> None:
    sliced.scores["quantized"][:12] = [0.0] * 12
    verdict = sliced.judge()
    assert _check(verdict, "exact: quantized against merged").decision == "PASS"
    broken = _check(verdict, "in kind=rare")
    assert (verdict.decision, broken.decision) == ("FAIL", "FAIL")
    assert broken.estimate == pytest.approx(-0.4)
    assert broken.rows == tuple(f"{number:016x}" for number in range(12))
    assert not any("kind=common" in check.rule or "all=rows" in check.rule for check in verdict.checks)


def test_harm_that_one_of_many_slices_shows_by_chance_is_no_fail(finished: Run) -> None:
    """Six of 30 lost at a margin of 0.1 come up once in 14 by chance: in one of 20 slices more often than not."""
    finished.scores = {role: [1.0] * 600 for role in finished.roles}
    finished.scores["base"] = [0.0] * 600
    finished.scores["quantized"][:6] = [0.0] * 6
    finished.rows = dict.fromkeys(finished.roles, tagged(lambda number: [f"slice={number // 30}"]))
    verdict = finished.judge()
    assert verdict.decision == "PASS", verdict.summary


def test_slices_of_few_rows_are_not_watched(sliced: Run) -> None:
    sliced.scores["quantized"][:12] = [0.0] * 12
    sliced.policy["min_slice_rows"] = 31
    verdict = sliced.judge()
    assert verdict.decision == "PASS", verdict.summary
    assert "1 slices of at least 31 rows" in _check(verdict, "no slice").reason


def test_a_named_slice_must_show_its_own_margin(sliced: Run) -> None:
    check = {**sliced.policy["checks"][1], "slice": "kind=rare", "margin": 0.12}
    sliced.policy["checks"].append(check)
    assert _check(sliced.judge(), "in kind=rare").decision == "PASS"
    sliced.folder = sliced.folder / "few lost"
    sliced.scores["quantized"][:2] = [0.0] * 2
    verdict = sliced.judge()
    assert (verdict.decision, _check(verdict, "in kind=rare").decision) == ("INCONCLUSIVE", "INCONCLUSIVE")
    sliced.folder = sliced.folder / "nobody carries it"
    check["slice"] = "kind=unknown"
    verdict = sliced.judge()
    assert verdict.decision == "FAIL"
    assert "No row carries the tag 'kind=unknown'" in _check(verdict, "in kind=unknown").reason


def test_a_named_slice_of_too_few_rows_decides_nothing_whatever_its_scores(sliced: Run) -> None:
    sliced.policy["checks"].append({**sliced.policy["checks"][1], "slice": "kind=rare"})
    sliced.policy["min_slice_rows"] = 31
    verdict = sliced.judge()
    check = _check(verdict, "in kind=rare")
    assert (verdict.decision, check.decision, check.rows_needed) == ("INCONCLUSIVE", "INCONCLUSIVE", 31)


def test_rows_that_are_in_other_slices_in_the_other_evaluation_are_not_paired(sliced: Run) -> None:
    sliced.rows["quantized"] = tagged(lambda number: ["kind=rare"])
    verdict = sliced.judge()
    assert verdict.decision == "FAIL"
    assert "in other slices" in _check(verdict, "quantized against merged").reason


def test_what_the_worse_rows_share_is_said_with_its_counts_and_nothing_that_chance_brings(sliced: Run) -> None:
    sliced.scores["quantized"][:24] = [0.0] * 24
    verdict = sliced.judge()
    whole = _check(verdict, "exact: quantized against merged")
    assert "kind=rare: 24 of the 24 rows that got worse, 30 of all 200" in whole.shared
    assert not any("all=rows" in said or "kind=common" in said for said in whole.shared)
    text = (sliced.folder / "verdict/verdict.md").read_text()
    assert "kind=rare: 24 of the 24 rows that got worse" in text


def test_answers_that_the_worse_rows_share_are_said(sliced: Run) -> None:
    sliced.scores["quantized"][:24] = [0.0] * 24

    def silent(rows: Rows) -> Rows:
        return [{**row, "answer": "" if row["score"] == 0 else row["answer"]} for row in tagged(_first_thirty)(rows)]

    sliced.rows["quantized"] = silent
    assert (
        "an empty answer: 24 of the 24 rows that got worse, 34 of all 200"
        in _check(sliced.judge(), "exact: quantized against merged").shared
    )
