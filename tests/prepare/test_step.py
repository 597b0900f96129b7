"""The artifact: what it holds, that it is the same each time, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.prepare.conftest import Prepared, chat, questions

from tunegate.contracts.manifest import verify
from tunegate.prepare.validate import Length, truncation


def test_the_same_rows_give_the_same_digest_twice(prepare: Any, tmp_path: Path) -> None:
    one, two = prepare(questions(60)), prepare(questions(60), to=tmp_path / "two")
    assert one.digest == two.digest


def test_the_artifact_holds_every_file_that_later_steps_read(prepare: Any) -> None:
    prepared: Prepared = prepare(questions(60))
    files = {entry.path for entry in verify(prepared.folder, kind="dataset").files}
    assert files == {
        "train.jsonl", "validation.jsonl", "evaluation.jsonl", "calibration.jsonl", "profile.json", "summary.json",
        "page.html",
    }  # fmt: skip
    summary = json.loads((prepared.folder / "summary.json").read_text())
    assert all(isinstance(value, str | int | float) for value in summary.values())
    assert summary["train_rows"] == len(prepared.rows("train"))


def test_calibration_rows_are_training_rows(prepare: Any) -> None:
    prepared: Prepared = prepare(questions(60), num_calibration_samples=10)
    calibration = prepared.rows("calibration")
    assert len(calibration) == 10
    assert all(row in prepared.rows("train") for row in calibration)


def test_every_task_of_the_rows_is_calibrated(prepare: Any) -> None:
    rows = [{**row, "task": "rare" if place < 6 else "common"} for place, row in enumerate(questions(60))]
    calibration = prepare(rows, num_calibration_samples=10).rows("calibration")
    tasks = [json.loads(row["fields"])["task"] for row in calibration]
    assert len(tasks) == 10 and 1 <= tasks.count("rare") <= 2


def test_what_a_held_out_row_says_never_calibrates(prepare: Any) -> None:
    """The first turn of two conversations can be one and the same, and lie on two sides."""
    first = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi, how can I help?"}]
    rows = [{"messages": [*first, *row["messages"]]} for row in questions(60)]
    prepared: Prepared = prepare(rows, num_calibration_samples=500, near_duplicate_threshold=1.0)
    said = [json.dumps([row["prompt"], row["completion"]]) for row in prepared.rows("calibration")]
    held = [json.dumps([row["prompt"], row["completion"]]) for row in prepared.rows("evaluation")]
    assert said and not set(said) & set(held)
    train = [json.dumps([row["prompt"], row["completion"]]) for row in prepared.rows("train")]
    assert set(train) & set(held)


def test_no_row_is_lost_without_being_counted(prepare: Any) -> None:
    rows = [*questions(60), questions(60)[3], chat("x", "y <|im_end|>"), chat("long " * 400, "yes")]
    prepared: Prepared = prepare(rows, invalid_rows="drop")
    assert sum(prepared.profile["dropped"].values()) + len(prepared.all()) == len(rows)
    assert set(prepared.profile["dropped"]) == {
        "exact duplicate", "a special token inside a turn", "longer than max_length",
    }  # fmt: skip


def test_the_page_shows_what_was_left_out_and_escapes_it(prepare: Any) -> None:
    rows = [*questions(60), chat("<script>alert(1)</script>" * 60, "yes")]
    prepared: Prepared = prepare(rows, max_length=128)
    page = (prepared.folder / "page.html").read_text("utf-8")
    assert "longer than max_length" in page and "rows.jsonl:61" in page
    assert "<script>alert" not in page


def test_too_long_a_row_is_refused_when_the_settings_say_so(prepare: Any, output: Path) -> None:
    import pytest

    from tunegate.contracts.errors import DataError

    rows = [*questions(60), chat("long " * 400, "yes")]
    with pytest.raises(DataError, match="1 of 61 rows are longer than max_length") as caught:
        prepare(rows, max_length=128, excess_length_strategy="raise")
    assert "rows.jsonl:61" in str(caught.value)
    assert not output.exists()


def test_a_row_that_is_cut_is_counted(prepare: Any) -> None:
    rows = [*questions(60), chat("why?", "because " * 400)]
    prepared: Prepared = prepare(rows, max_length=128, excess_length_strategy="truncate")
    assert prepared.profile["truncated_rows"] == 1
    assert len(prepared.all()) == 61


def test_a_late_turn_that_is_too_long_takes_only_itself_away(prepare: Any) -> None:
    turns = [("user", "a?"), ("assistant", "A."), ("user", "b " * 300), ("assistant", "B.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    prepared: Prepared = prepare([*questions(60), row], max_length=128)
    assert [r["completion"][0]["content"] for r in prepared.all() if r["id"].endswith(("-0", "-1"))] == ["A."]
    assert prepared.profile["dropped"] == {"longer than max_length": 1}


def test_the_labels_said_to_survive_are_those_that_trl_keeps(tiny_base: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tunegate.models.chat import render
    from tunegate.models.load import load_causal_lm, load_tokenizer

    tokenizer = load_tokenizer(tiny_base)
    prompt, answer = [{"role": "user", "content": "why is it so?"}], [{"role": "assistant", "content": "because it is"}]
    rendered = render(tokenizer, prompt, answer)
    length = Length(len(rendered.prompt_ids), len(rendered.completion_ids))
    kept = {}
    for max_length in (length.prompt - 1, length.prompt, length.prompt + 1, length.total - 1, length.total):
        trainer = SFTTrainer(
            model=load_causal_lm(tiny_base),
            processing_class=tokenizer,
            args=SFTConfig(
                output_dir=str(tmp_path), max_length=max_length, report_to=[], use_cpu=True, bf16=False,
                per_device_train_batch_size=1, completion_only_loss=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt, "completion": answer}]),
        )  # fmt: skip
        # TRL itself leaves out a row without labels, and does not say so.
        kept[max_length] = sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    assert list(kept.values()) == [0, 0, 1, length.completion - 1, length.completion]
    said = [truncation(length, max_length) for max_length in kept]
    assert said == ["lost", "lost", "cut", "cut", "fits"]
