"""What repeats is learned once, and what gives an evaluation row away is not learned at all."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.prepare.conftest import Prepared, chat, questions

from tunegate.models.similarity import Comparable, Index, distinctive, jaccard, shingles
from tunegate.prepare.split import side

STORY = "The lighthouse keeper of the northern island counts forty seven passing ships before his breakfast"


def _on(wanted: str, text: str, answer: str) -> dict[str, Any]:
    """A row whose question says ``text`` and lies on the wanted side."""
    for number in range(200):
        row = chat(f"{text} {chr(97 + number % 26)}{number // 26}", answer)
        if side(row["messages"][:1], validation_fraction=0.2, evaluation_fraction=0.25) == wanted:
            return row
    raise AssertionError(wanted)


def test_a_row_given_twice_is_learned_once_and_the_first_stays(prepare: Any) -> None:
    again = chat(" amber  amber 0?", "amber   0")
    prepared: Prepared = prepare([*questions(40), again, questions(40)[7]])
    assert len(prepared.all()) == 40
    assert prepared.profile["dropped"] == {"exact duplicate": 2}
    assert [row["detail"] for row in prepared.profile["dropped_rows"]] == [
        "same as rows.jsonl:1",
        "same as rows.jsonl:8",
    ]


def test_a_row_that_differs_by_a_letter_is_learned_once(prepare: Any) -> None:
    twins = [_on("train", STORY, "He is fond of them."), _on("train", STORY + "!", "He is fond of them.")]
    prepared: Prepared = prepare([*questions(40), *twins])
    assert prepared.profile["dropped"] == {"near duplicate": 1}
    (dropped,) = prepared.profile["dropped_rows"]
    assert dropped["where"] == "rows.jsonl:42" and "to rows.jsonl:41" in dropped["detail"]


def test_rows_that_share_a_long_instruction_are_not_duplicates(prepare: Any) -> None:
    instruction = "Read the review below with care and say whether its author was pleased with what he bought. " * 3
    rows = [chat(instruction + row["messages"][0]["content"], "yes") for row in questions(60)]
    assert prepare(rows, max_length=2048).profile["dropped"] == {}


def test_rows_that_differ_by_their_system_message_alone_are_not_duplicates(prepare: Any) -> None:
    rows = [chat("Summarise it.", "ok", system=row["messages"][0]["content"] + STORY) for row in questions(60)]
    assert prepare(rows, max_length=2048).profile["dropped"] == {}


def test_a_shared_system_message_does_not_make_rows_alike(prepare: Any) -> None:
    rows = [chat(row["messages"][0]["content"], "yes", system=STORY) for row in questions(12)]
    found = distinctive([Comparable(r["messages"][1]["content"], STORY + r["messages"][1]["content"]) for r in rows])
    assert max(jaccard(a, b) for i, a in enumerate(found) for b in found[:i]) < 0.7


def test_a_training_row_that_rewords_an_evaluation_question_is_left_out_and_the_evaluation_row_stays(
    prepare: Any,
) -> None:
    rows = [_on("evaluation", STORY, "Gulls."), _on("train", STORY, "Terns and skuas."), _on("validation", STORY, "X")]
    prepared: Prepared = prepare([*questions(40), *rows])
    assert prepared.profile["dropped"] == {"near overlap with evaluation": 2}
    assert {row["where"] for row in prepared.profile["dropped_rows"]} == {"rows.jsonl:42", "rows.jsonl:43"}
    overlap = prepared.profile["overlap"]
    assert (overlap["exact"], overlap["near"], overlap["pairs"]) == (0, 0, [])
    assert (overlap["found"], overlap["dropped"]) == ({"exact": 0, "near": 2}, 2)


def test_overlap_that_is_kept_is_named_for_the_gate(prepare: Any) -> None:
    rows = [_on("evaluation", STORY, "Gulls."), _on("train", STORY, "Terns and skuas.")]
    prepared: Prepared = prepare([*questions(40), *rows], overlap_strategy="keep")
    overlap = prepared.profile["overlap"]
    assert (overlap["exact"], overlap["near"], overlap["dropped"]) == (0, 1, 0)
    (pair,) = overlap["pairs"]
    assert (pair["learned"], pair["evaluation"], pair["part"]) == ("rows.jsonl:42", "rows.jsonl:41", "prompt")
    assert pair["evaluation_id"] in {row["id"] for row in prepared.rows("evaluation")}
    assert pair["learned_id"] in {row["id"] for row in prepared.rows("train")}


def test_the_same_question_under_another_system_message_is_exact_overlap(prepare: Any) -> None:
    rows = {}
    for number in range(200):
        row = chat(STORY, "Gulls.", system=f"You are persona {number}")
        rows.setdefault(side(row["messages"][:-1], validation_fraction=0.2, evaluation_fraction=0.25), row)
    prepared: Prepared = prepare([*questions(40), rows["train"], rows["evaluation"]], overlap_strategy="keep")
    assert prepared.profile["overlap"]["exact"] == 1
    assert prepared.profile["overlap"]["near"] == 0


def test_a_long_answer_that_is_an_evaluation_rows_answer_is_overlap(prepare: Any) -> None:
    answer = (
        STORY + ", and writes each name into a book that nobody reads until the harbour master visits in autumn. " * 2
    )
    rows = [_on("evaluation", "Tell me about gulls", answer), _on("train", "Who counts what up there, please", answer)]
    prepared: Prepared = prepare([*questions(40), *rows], overlap_strategy="keep")
    assert [pair["part"] for pair in prepared.profile["overlap"]["pairs"]] == ["completion"]


def test_short_answers_that_are_alike_are_no_overlap(prepare: Any) -> None:
    rows = [chat(row["messages"][0]["content"], "positive") for row in questions(60)]
    assert prepare(rows).profile["overlap"]["found"] == {"exact": 0, "near": 0}


@given(st.text(), st.text())
def test_similarity_is_one_for_equal_texts_and_symmetric(one: str, other: str) -> None:
    assert jaccard(shingles(one), shingles(one)) == 1.0
    assert jaccard(shingles(one), shingles(other)) == jaccard(shingles(other), shingles(one))


def test_the_index_finds_what_comparing_every_pair_finds() -> None:
    words = ["gull", "tern", "skua", "auk", "puffin", "heron", "crane", "stork"]
    texts = [" ".join(words[(i * k) % 8] for k in range(1, 14)) + f" {i // 8}" for i in range(64)]
    sets = [shingles(text) for text in texts]
    index = Index(0.7)
    for number, row in enumerate(sets[:32]):
        index.add(number, row)
    for row in sets[32:]:
        best = max(jaccard(row, other) for other in sets[:32])
        found = index.nearest(row)
        assert (found[1] if found else 0.0) == (best if best >= 0.7 else 0.0)
