"""Turns of one conversation win and lose together: they are judged as one, and never as so many independent rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tunegate.contracts.verdict import Check, Verdict
from tunegate.gate.comparison import compare
from tunegate.gate.policy import Rule
from tunegate.gate.units import sample_of

#: tests/gate/conftest.py's ``Run``, which import-mode importlib cannot name here.
Run = Any
Rows = list[dict[str, Any]]

ALPHA = 0.05
TURNS = 5
RULE = Rule("t", "m", "quantized", "merged", margin=0.1)


def _false_promotions(unit_of: Callable[[int], str], *, conversations: int, draws: int) -> float:
    """Of a model at the margin that loses or wins whole conversations."""
    rng, promoted = np.random.default_rng(conversations), 0
    ids = [unit_of(row) for row in range(conversations * TURNS)]
    for _ in range(draws):
        gains = np.repeat(rng.choice([1.0, -1.0, 0.0], conversations, p=[0.05, 0.15, 0.8]), TURNS)
        promoted += compare(RULE, sample_of(gains, ids), alpha=ALPHA).passes(-0.1, ALPHA)
    return promoted / draws


def test_a_model_at_the_margin_is_rarely_promoted_on_conversations_of_several_turns() -> None:
    assert _false_promotions(lambda row: f"{row // TURNS}", conversations=40, draws=300) <= ALPHA + 0.01
    assert _false_promotions(str, conversations=40, draws=60) > 0.1, "what judging the turns one by one would do"


def test_a_conversation_is_judged_by_the_mean_of_its_rows_whatever_their_order() -> None:
    sample = sample_of(np.array([1.0, 0.0, -1.0, 1.0, 0.0]), ["a", "b", "c", "a", "a"])
    assert sorted(sample.gains.tolist()) == pytest.approx([-1.0, 0.0, 2 / 3])
    assert sample.grouped and sample.worst == -1.0
    assert not sample_of(np.array([1.0, 0.0]), ["a", "b"]).grouped


def _turns(rows: Rows) -> Rows:
    return [{**row, "conversation": f"c{number // TURNS}"} for number, row in enumerate(rows)]


def _check(verdict: Verdict) -> Check:
    return next(check for check in verdict.checks if "quantized against merged" in check.rule)


@pytest.fixture
def talking(finished: Run) -> Run:
    """100 rows, of which five at a time are a conversation; quantized loses one whole conversation of the twenty."""
    finished.scores = {"base": [0.0] * 100, "merged": [1.0] * 100, "quantized": [1.0] * 95 + [0.0] * 5}
    finished.policy["checks"][1]["margin"] = 0.15
    return finished


def test_rows_that_would_do_one_by_one_do_not_as_turns_and_the_verdict_says_why(talking: Run) -> None:
    assert _check(talking.judge()).decision == "PASS"
    talking.folder = talking.folder / "turns"
    talking.rows = dict.fromkeys(talking.roles, _turns)
    check = _check(talking.judge())
    assert check.decision == "INCONCLUSIVE"
    assert (
        "on 100 rows of 20 conversations, each judged by the mean gain of its rows: 0 better, 5 worse" in check.reason
    )
    assert check.rows_needed is not None and f"about {check.rows_needed} such conversations would" in check.reason


def test_models_whose_rows_are_of_other_conversations_are_not_compared(talking: Run) -> None:
    talking.rows = {"quantized": _turns}
    check = _check(talking.judge())
    assert check.decision == "FAIL" and "of other conversations" in check.reason
