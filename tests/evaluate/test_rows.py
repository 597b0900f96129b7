"""Per-row results: numbers become scores, aggregates' inputs do not, and a row scored twice is an error."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tunegate.contracts.errors import RunError
from tunegate.evaluate.measured import ScoredRow
from tunegate.evaluate.rows import row_names, scored_rows


def _sample(**values: Any) -> dict[str, Any]:
    scores = {"acc": 1.0}
    return {
        "doc_id": 0, "doc": {}, "doc_hash": "d0", "arguments": [("prompt", " A"), ("prompt", " B")],
        "filtered_resps": [(-1.0, True), (-2.0, False)], "filter": "none", "metrics": list(scores), **scores, **values,
    }  # fmt: skip


def _scored(task: str, samples: Sequence[Mapping[str, Any]], *, ours: bool) -> tuple[ScoredRow, ...]:
    return scored_rows(task, samples, row_names(samples, ours=ours), ours=ours)


def test_a_task_of_the_harness_names_its_rows_by_their_documents_digest() -> None:
    """Also where a document has columns that mean something in ours."""
    (row,) = _scored("arc", (_sample(doc={"row_id": 7, "tags": ["x"], "options": ["A"]}),), ours=False)
    assert (row.row_id, row.task, row.metric, row.score, row.answer) == ("d0", "arc", "acc", 1.0, "")
    assert row.tags == () and row.prompt_digest == hashlib.sha256(b"prompt").hexdigest()


def test_a_choice_of_ours_is_answered_by_the_likelier_option() -> None:
    doc = {"row_id": "france", "tags": ["continent=Europe"], "options": ["Lyon", "Paris"]}
    (row,) = _scored("t", (_sample(doc=doc, filtered_resps=[(-2.0, False), (-1.0, False)]),), ours=True)
    assert (row.row_id, row.answer, row.tags) == ("france", "Paris", ("continent=Europe",))


def test_a_turn_says_of_which_conversation_it_is_and_a_harness_document_never() -> None:
    doc = {"row_id": "c-1", "conversation": "c"}
    assert [_scored("t", (_sample(doc=doc),), ours=ours)[0].conversation for ours in (True, False)] == ["c", ""]


def test_each_filter_of_a_task_is_a_metric_of_its_own() -> None:
    samples = (_sample(filter="strict"), _sample(filter="flexible", acc=0.0))
    rows = _scored("gsm8k", samples, ours=False)
    assert [(row.metric, row.score) for row in rows] == [("acc,flexible", 0.0), ("acc,strict", 1.0)]


def test_the_pairs_that_an_aggregate_is_made_of_are_no_scores() -> None:
    rows = _scored("t", (_sample(metrics=["acc", "perplexity"], perplexity=(-3.0, 2)),), ours=False)
    assert [row.metric for row in rows] == ["acc"]


@pytest.mark.parametrize("samples", [(), (_sample(), _sample())])
def test_a_row_that_is_missing_or_scored_twice_is_an_error(samples) -> None:
    with pytest.raises(RunError, match="exactly once"):
        _scored("t", samples, ours=False)


def test_equal_documents_of_a_task_are_rows_of_their_own_whatever_the_order_of_the_answers() -> None:
    """One duplicate in a task's data ended the evaluation of all tasks, after all work."""
    samples = [_sample(doc_id=n, doc_hash=h, acc=float(n)) for n, h in enumerate(["twin", "other", "twin", "twin"])]
    rows = _scored("t", samples, ours=False)
    assert {row.row_id: row.score for row in rows} == {"twin": 0.0, "other": 1.0, "twin-2": 2.0, "twin-3": 3.0}
    assert _scored("t", samples[::-1], ours=False) == rows
    (again,) = scored_rows("t", [samples[2]], row_names(samples, ours=False), ours=False)
    assert again.row_id == "twin-2"


def test_rows_of_ours_with_one_id_are_an_error() -> None:
    samples = [_sample(doc_id=n, doc={"row_id": "same"}) for n in range(2)]
    with pytest.raises(RunError, match="exactly once"):
        _scored("t", samples, ours=True)
