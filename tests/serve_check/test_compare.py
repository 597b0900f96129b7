"""One answer against the evaluated model: what counts as the same, what as a tie, and what as another model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tunegate.models.reading import Noise, Place
from tunegate.serve_check.answers import Answer
from tunegate.serve_check.compare import Compared, compare
from tunegate.serve_check.evaluated import Read
from tunegate.serve_check.questions import PROBE, Question
from tunegate.serve_check.report import serving_document
from tunegate.serving.answers import Token

END = 2
FLOOR = 0.1


def compared(
    *, served: list[int], evaluated: list[int], gaps: list[float], finish_reason: str = "stop", **changed: Any
) -> Compared:
    """An answer of ``served`` tokens where the evaluated model leads with ``evaluated`` by ``gaps``."""
    question = Question("row", PROBE, ({"role": "user", "content": "?"},), "", (5, 6), (5, 6), (7,), 8)
    tokens = tuple(Token(token, logprob=-1.0) for token in served)
    given: dict[str, Any] = {
        "question": question, "rendered_ids": (5, 6), "tokens": tokens, "text": "said", "finish_reason": finish_reason,
        "given_logprobs": (-2.0,), "first_token_seconds": 1.0, "answer_seconds": 1.0,
    }  # fmt: skip
    places = [
        Place(logprob=-1.0 - 0.01 * n, best=best, best_logprob=-0.5, second=9, gap=gap)
        for n, (best, gap) in enumerate(zip(evaluated, gaps, strict=True))
    ]
    read = Read(tuple(places), (Place(-2.5, 7, -2.5, 9, 1.0),))
    return compare(Answer(**{**given, **changed}), read, gap_floor=FLOOR, end_ids={END}, text="said")


def test_the_same_tokens_are_the_same_answer_however_small_the_leads() -> None:
    found = compared(served=[3, 4, END], evaluated=[3, 4, END], gaps=[1.0, 0.01, 1.0])
    assert (found.outcome, found.tokens, found.certain_tokens, found.ended) == ("same", 3, 2, True)
    assert (found.served_token, found.evaluated_token, found.gap) == (None, None, None)


def test_another_token_where_rounding_decides_is_a_tie_and_nothing_behind_it_is_compared() -> None:
    found = compared(served=[3, 8, 8, END], evaluated=[3, 4, 1, 1], gaps=[1.0, 0.09, 5.0, 5.0])
    assert (found.outcome, found.tokens, found.certain_tokens) == ("tie", 2, 1)
    assert (found.served_token, found.evaluated_token, found.gap) == (8, 4, 0.09)
    assert len(found.differences) == 3  # one given token, and two of the answer


def test_another_token_where_the_evaluated_model_is_certain_differs() -> None:
    assert compared(served=[3, 8, END], evaluated=[3, 4, END], gaps=[1.0, FLOOR, 1.0]).outcome == "differs"


def test_a_tie_hides_no_difference_before_it() -> None:
    found = compared(served=[8, 8, END], evaluated=[3, 4, END], gaps=[1.0, 0.01, 1.0])
    assert (found.outcome, found.tokens) == ("differs", 1)


def test_another_prompt_than_the_evaluated_one_is_told() -> None:
    same = {"served": [END], "evaluated": [END], "gaps": [1.0]}
    assert compared(**same).rendered
    assert not compared(**same, rendered_ids=(5, 6, 6)).rendered


def test_differences_are_served_minus_evaluated_of_given_and_answered_tokens() -> None:
    found = compared(served=[3, END], evaluated=[3, END], gaps=[1.0, 1.0])
    assert found.differences == pytest.approx((0.5, 0.0, 0.01))


def document(*rows: Compared) -> dict[str, Any]:
    texts = {token: "t" for row in rows for token in (row.served_token, row.evaluated_token) if token is not None}
    noise = Noise((0.05,), (0.001, 0.003))
    return serving_document(rows, noise, digests={}, served_name="name", engine={}, evaluated_with={}, texts=texts)


def test_the_report_counts_ties_as_agreement_and_names_every_row_that_is_not_the_same() -> None:
    same = compared(served=[3, END], evaluated=[3, END], gaps=[1.0, 1.0])
    tie = compared(served=[8, END], evaluated=[3, END], gaps=[0.01, 1.0])
    other = compared(served=[8, END], evaluated=[3, END], gaps=[1.0, 1.0])
    found = document(same, same, tie, other)
    assert (found["agreement"], found["ties"], found["rows"]) == (0.75, 1, 4)
    assert [row["outcome"] for row in found["apart"]] == ["tie", "differs"]
    assert found["noise"] == {"gap_floor": 0.1, "tokens": 2, "mean": 0.002, "max": 0.003}
    assert found["logprobs"]["max"] == pytest.approx(0.5)


def test_a_log_probability_that_is_no_number_leaves_no_figure_that_a_limit_could_hold_for() -> None:
    broken = compared(served=[END], evaluated=[END], gaps=[1.0], given_logprobs=(math.nan,))
    assert document(broken)["logprobs"] == {"tokens": 2, "mean": None, "max": None}
