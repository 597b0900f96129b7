"""When a served answer is the evaluated one: where it ends, and what no number can hold for."""

from __future__ import annotations

import math

import pytest

from tunegate.serving.agreement import Sizes, agreement, ends_as_evaluated, sizes

END = 2


@pytest.mark.parametrize(
    ("ids", "finish_reason", "right"),
    [
        ([3, END], "stop", True),
        ([3] * 8, "length", True),
        ([3] * 7 + [END], "stop", True),
        ([3, 4], "length", False),  # cut before it was asked to
        ([3, 4], "stop", False),  # stopped at a token that ends nothing
        ([3, END, 4, END], "stop", False),  # went on behind the end
        ([3, END], "length", False),
        ([], "stop", False),
    ],
)
def test_an_answer_ends_where_evaluation_ends_it_or_where_it_is_cut(
    ids: list[int], finish_reason: str, right: bool
) -> None:
    assert ends_as_evaluated(ids, finish_reason, end_ids={END}, max_tokens=8) is right


def test_of_an_answer_that_stops_short_only_what_is_there_is_compared() -> None:
    found = agreement([3, 4], [3, 4, 5], [1.0, 0.05, 1.0], gap_floor=0.1)
    assert (found.outcome, found.tokens, found.certain_tokens, found.apart) == ("same", 2, 1, None)


def test_a_difference_that_is_no_number_has_no_mean_that_a_limit_could_hold_for() -> None:
    assert sizes([0.5, -0.25]) == Sizes(2, 0.375, 0.5)
    assert sizes([0.5, math.nan]) == Sizes(2, None, None)
    assert sizes([]) == Sizes(0, None, None)
