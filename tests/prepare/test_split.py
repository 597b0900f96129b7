"""A row's side follows from its own prompt."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.prepare.conftest import Prepared, chat, questions

from tunegate.prepare.split import position, rows_needed, side

_PROMPTS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": st.text()}), min_size=1, max_size=3
)
_FRACTIONS = st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.5))


@given(_PROMPTS, _FRACTIONS)
def test_a_prompt_has_one_side_whatever_else_is_in_the_data_set(
    prompt: list[dict[str, str]], fractions: tuple[float, float]
) -> None:
    where = position(prompt)
    assert 0 <= where < 1
    found = side(prompt, validation_fraction=fractions[0], evaluation_fraction=fractions[1])
    assert (found == "evaluation") == (where < fractions[1])
    assert (found == "train") == (where >= fractions[0] + fractions[1])


@given(_PROMPTS, _FRACTIONS)
def test_a_larger_evaluation_side_keeps_the_rows_it_had(
    prompt: list[dict[str, str]], fractions: tuple[float, float]
) -> None:
    small, large = (
        side(prompt, validation_fraction=fractions[0], evaluation_fraction=fraction)
        for fraction in (fractions[1] / 2, fractions[1])
    )
    assert small != "evaluation" or large == "evaluation"


@settings(max_examples=50)
@given(st.text(min_size=1).filter(str.strip))
def test_white_space_and_unicode_form_do_not_move_a_row(text: str) -> None:
    assert position(f"  {text}\n\t") == position(text)
    assert position("caf\u00e9 " + text) == position("cafe\u0301 " + text)


def test_the_fractions_are_met_on_average() -> None:
    sides = Counter(side(f"row {i}", validation_fraction=0.05, evaluation_fraction=0.25) for i in range(20_000))
    assert abs(sides["evaluation"] / 20_000 - 0.25) < 0.01
    assert abs(sides["validation"] / 20_000 - 0.05) < 0.005


def test_the_rows_that_an_error_asks_for_are_enough() -> None:
    for fraction in (0.05, 0.25):
        rows = rows_needed(fraction)
        assert (1 - fraction) ** rows <= 0.01 < (1 - fraction) ** (rows - 1)


def test_no_row_changes_side_when_rows_are_added_before_between_and_after(prepare: Any, tmp_path: Any) -> None:
    few = questions(60)
    more = [row for pair in zip(few, questions(200)[60:], strict=False) for row in reversed(pair)]
    one: Prepared = prepare(few)
    two: Prepared = prepare(more, to=tmp_path / "more")
    assert len(two.all()) == 2 * len(one.all())
    for name in ("train", "validation", "evaluation"):
        assert {row["id"] for row in one.rows(name)} <= {row["id"] for row in two.rows(name)}


def test_two_answers_to_one_question_are_never_on_two_sides(prepare: Any) -> None:
    rows = [chat(row["messages"][0]["content"], f"{row['messages'][1]['content']} {extra}")
            for row in questions(50) for extra in ("alpha beta gamma", "quite another answer")]  # fmt: skip
    prepared: Prepared = prepare(rows, near_duplicate_threshold=1.0)
    prompts = [{row["prompt"][0]["content"] for row in prepared.rows(s)} for s in ("train", "validation", "evaluation")]
    assert len(prepared.all()) == 100
    assert sum(len(one) for one in prompts) == len(set().union(*prompts)) == 50
