"""The page of an evaluation: where a mean may lie, where it breaks down, and the rows to look at first."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunegate.evaluate.interval import mean_interval
from tunegate.evaluate.measured import Asked, Measured, ScoredRow
from tunegate.evaluate.page import evaluation_page

RESULTS: dict[str, Any] = {
    "model_digest": "d" * 64, "model_bytes": 1, "engine": {}, "settings": {"max_new_tokens": 8},
    "noise": {}, "overlap": {},
}  # fmt: skip


def _measured(metric: str, scores: list[float], tags: list[str]) -> Measured:
    rows = [
        ScoredRow(f"r{n}", "task", metric, score, "p", f"<answer {n}>", (tag,))
        for n, (score, tag) in enumerate(zip(scores, tags, strict=True))
    ]
    asked = {row.row_id: Asked(f"question {row.row_id}", "right") for row in rows}
    return Measured({metric: sum(scores) / len(scores)}, tuple(rows), asked, 4)


def _text(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", page)


def test_slices_stand_in_the_order_of_their_numbers_and_small_or_whole_ones_not_at_all() -> None:
    tags = ["n=10"] * 5 + ["n=2"] * 5 + ["n=3"] * 2
    page = evaluation_page(RESULTS, {"task": _measured("exact", [1.0] * 5 + [0.0] * 7, tags)})
    assert page.index("n=2") < page.index("n=10") and "n=3" not in page
    whole = evaluation_page(RESULTS, {"task": _measured("exact", [1.0] * 12, ["n=1"] * 12)})
    assert "Slices" not in whole


@pytest.mark.parametrize(("metric", "worst"), [("exact", "r3"), ("nll", "r0")])
def test_the_worst_rows_come_first_whichever_scores_are_better(metric: str, worst: str) -> None:
    page = evaluation_page(RESULTS, {"task": _measured(metric, [1.0, 0.9, 0.5, 0.0], ["a=b"] * 4)})
    assert re.search(r"\br\d: ", _text(page))[0] == f"{worst}: "  # type: ignore[index]
    assert "&lt;answer" in page and "<answer" not in page, "what a model says is no markup"


def test_an_interval_is_wilsons_or_students() -> None:
    from scipy import stats

    assert mean_interval([0.0] * 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # Wilson's, 0 of 10
    scores = [1.2, 0.7, 2.9, 1.1, 0.4]
    wanted = stats.t.interval(0.95, 4, loc=1.26, scale=stats.sem(scores))
    assert mean_interval(scores) == pytest.approx(wanted)
    assert mean_interval([0.3]) is None
