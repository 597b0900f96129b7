"""Rows of several tasks: each is among those chosen, in its share, and always the same ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunegate.contracts.errors import DataError
from tunegate.models.strata import by_task, stratified, task_of


def _rows(**tasks: int) -> list[dict]:
    return [
        {"id": f"{number:03}-{task}", "fields": json.dumps({"task": task})}
        for task, count in tasks.items()
        for number in range(count)
    ]


def _counts(rows) -> dict[str, int]:
    return {task: len(own) for task, own in by_task(rows).items()}


def test_each_task_has_its_share_and_at_least_one_row() -> None:
    rows = _rows(chat=90, tool=9, rare=1)
    assert _counts(stratified(rows, count=20)) == {"chat": 17, "tool": 2, "rare": 1}
    assert _counts(stratified(rows, count=3)) == {"chat": 1, "tool": 1, "rare": 1}


def test_rows_without_a_task_are_those_with_the_lowest_ids() -> None:
    rows = [{"id": str(number), "fields": "{}"} for number in (3, 1, 2)]
    assert [row["id"] for row in stratified(rows, count=2)] == ["1", "2"]
    assert task_of({"id": "a"}) == task_of({"id": "a", "fields": json.dumps({"task": 7})}) == ""


def test_fewer_rows_than_tasks_are_refused_with_the_number_needed() -> None:
    with pytest.raises(DataError, match="more tasks") as caught:
        stratified(_rows(a=5, b=5, c=5), count=2)
    assert "to 3 or more" in caught.value.remedy and caught.value.items == ("a", "b", "c")


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.integers(6, 120), st.randoms())
def test_the_choice_has_the_right_size_and_does_not_depend_on_the_order_of_the_rows(tasks, count, random) -> None:
    rows = _rows(**tasks)
    chosen = stratified(rows, count=count)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert stratified(shuffled, count=count) == chosen
    assert len(chosen) == min(count, len(rows)) and len({row["id"] for row in chosen}) == len(chosen)
    counts = _counts(chosen)
    assert counts.keys() == tasks.keys()
    for task, size in tasks.items():
        share = min(size * count / len(rows), size)
        assert 1 <= counts[task] <= size and abs(counts[task] - share) <= len(tasks)
