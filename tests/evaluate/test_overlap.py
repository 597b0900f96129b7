"""Rows of a task that training saw are found, exact and near; and counted where the gate looks for them."""

import json
from typing import Any

import pytest
import yaml

from tunegate.evaluate.measured import Asked
from tunegate.evaluate.overlap import find_overlap, read_learned
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run

STORY = "The lighthouse keeper of the northern island counts forty seven passing ships before his breakfast"
LONG = " ".join(f"Ship number {number} is painted in the colour of its harbour." for number in range(8))


def _row(identity: str, question: str, answer: str = "yes") -> dict[str, Any]:
    return {
        "id": identity,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "fields": "{}",
    }


@pytest.mark.parametrize(
    ("learned", "asked", "counts"),
    [
        (_row("a", STORY), Asked(f"  {STORY.upper()}\n", "x"), {"exact": 1, "near": 0}),
        (_row("a", STORY), Asked(STORY.replace("breakfast", "supper"), "x"), {"exact": 0, "near": 1}),
        (_row("a", STORY), Asked("Which harbour has the oldest crane of the coast?", "x"), {"exact": 0, "near": 0}),
        (_row("a", "Tell me of ships.", LONG), Asked("What do you know?", LONG), {"exact": 1, "near": 0}),
        (_row("a", "Tell me of ships.", "Paris"), Asked("Where is the tower?", "Paris"), {"exact": 0, "near": 0}),
        ({"id": "a", "text": STORY, "fields": "{}"}, Asked(STORY, "x"), {"exact": 1, "near": 0}),
        (_row("a", STORY), Asked("", "x"), {"exact": 0, "near": 0}),
    ],
)
def test_a_row_that_training_saw_is_found_whatever_case_and_white_space(learned, asked, counts) -> None:
    found = find_overlap([learned], {"task": {"r": asked}}, threshold=0.7)["task"]
    assert {kind: found[kind] for kind in ("exact", "near")} == counts
    assert [pair["learned_id"] for pair in found["examples"]] == ["a"] * sum(counts.values())


def test_each_task_is_counted_on_its_own_and_names_its_worst_rows() -> None:
    asked = {"one": {str(n): Asked(STORY, "x") for n in range(12)}, "two": {"0": Asked("Quite another thing", "x")}}
    found = find_overlap([_row("a", STORY)], asked, threshold=0.7)
    assert (found["one"]["exact"], len(found["one"]["examples"]), found["two"]["exact"]) == (12, 8, 0)


def test_an_evaluation_states_which_rows_of_a_users_task_were_trained_on(tiny_base, tiny_dataset, tmp_path) -> None:
    learned = read_learned(tiny_dataset)[0]["prompt"][-1]["content"]
    rows = [{"q": learned, "a": "yes"}, {"q": "Is the moon a planet of its own?", "a": "no"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "mine", "type": "exact_match", "data": "rows.jsonl", "prompt": "{{q}}", "answer": "{{a}}"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    settings = EvaluateSettings(tasks=(str(tmp_path / "mine.yaml"),), max_new_tokens=2, noise_rows=0)
    manifest = run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    overlap = json.loads((tmp_path / "out/results.json").read_text())["overlap"]
    assert (overlap["mine"]["exact"], overlap["mine"]["near"]) == (1, 0)
    assert "learned_rows" in manifest.parents, "other train rows are another evaluation"
    assert "Rows that were trained on" in (tmp_path / "out/page.html").read_text()
