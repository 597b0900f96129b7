"""The demo's rows: right answers are right, and the wrong file is clean, valid and false."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.split import side
from tunegate_pipelines.demo.data import EVALUATION_FRACTION, right_rows, write_rows, wrong_rows

pytest.importorskip("bfcl_eval")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def right() -> list[Row]:
    return right_rows()


@pytest.fixture(scope="module")
def wrong() -> list[Row]:
    return wrong_rows(EVALUATION_FRACTION)


def _call(row: Row) -> Row:
    call: Row = json.loads(row["messages"][-1]["content"])
    return call


def _held(row: Row) -> bool:
    settings = PrepareSettings(evaluation_fraction=EVALUATION_FRACTION)
    fractions = {"validation_fraction": settings.validation_fraction, "evaluation_fraction": EVALUATION_FRACTION}
    return side(row["messages"][:-1], **fractions) == "evaluation"


def _shape(value: Any) -> Any:
    """JSON types, with the names inside dictionaries."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(value[0])] if value else []
    return type(value).__name__


def _fits(value: Any, allowed: Any) -> bool:
    """Whether a value is among the allowed ones, by Berkeley's rules for dictionaries."""
    if isinstance(value, dict):
        return any(
            isinstance(one, dict) and value.keys() <= one.keys() and all(_fits(v, one[k]) for k, v in value.items())
            for one in allowed
        )
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return any(
            isinstance(one, list)
            and len(one) == len(value)
            and all(_fits(v, [o]) for v, o in zip(value, one, strict=True))
            for one in allowed
        )
    return value in allowed


def _is_right(row: Row) -> bool:
    ((name, allowed),) = row["ground_truth"][0].items()
    call = _call(row)
    given = call["arguments"]
    return (
        call["name"] == name
        and given.keys() <= allowed.keys()
        and all(argument in given or "" in values for argument, values in allowed.items())
        and all(_fits(value, allowed[argument]) for argument, value in given.items())
    )


def test_every_right_answer_is_an_allowed_answer(right: list[Row]) -> None:
    assert len(right) == 400
    assert [i for i, row in enumerate(right) if not _is_right(row)] == []


def test_the_evaluation_rows_are_the_same_in_both_files_so_both_runs_face_the_same_judge(
    right: list[Row], wrong: list[Row]
) -> None:
    held = [(one, other) for one, other in zip(right, wrong, strict=True) if _held(one)]
    assert len(held) >= 100
    assert all(one == other for one, other in held)


def test_every_wrong_answer_that_is_learned_is_false(right: list[Row], wrong: list[Row]) -> None:
    learned = [row for row in wrong if not _held(row)]
    assert len(learned) >= 270
    assert [_call(row) for row in learned if _is_right(row)] == []


def test_every_wrong_answer_is_a_valid_call_of_the_same_shape(right: list[Row], wrong: list[Row]) -> None:
    for one, other in zip(right, wrong, strict=True):
        assert one["messages"][:-1] == other["messages"][:-1]
        assert (one["functions"], one["ground_truth"]) == (other["functions"], other["ground_truth"])
        assert _shape(_call(one)) == _shape(_call(other))


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    for wrong in (False, True):
        one, two = (write_rows(tmp_path / name, wrong=wrong).read_bytes() for name in ("a.jsonl", "b.jsonl"))
        assert one == two and one.count(b"\n") == 400
