"""Calibration rows come from the train side alone, and are what training rendered."""

import json
from pathlib import Path

import pytest

from tunegate.contracts.errors import DataError
from tunegate.models.load import load_tokenizer
from tunegate.quantize.calibration import Calibration, calibration_rows, check_enough_tokens, render_calibration


def _row(identity: str) -> dict:
    return {
        "id": identity,
        "prompt": [{"role": "user", "content": f"question {identity}"}],
        "completion": [{"role": "assistant", "content": "answer"}],
        "fields": "{}",
    }


def _dataset(folder: Path, **sides: list[str]) -> Path:
    for side in ("train", "validation", "evaluation", "calibration"):
        lines = (json.dumps(_row(i), ensure_ascii=False) + "\n" for i in sides.get(side, []))
        (folder / f"{side}.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.mark.parametrize("side", ["evaluation", "validation"])
def test_a_held_out_row_never_calibrates(tmp_path, side) -> None:
    dataset = _dataset(tmp_path, train=["a", "b"], calibration=["a", "b"], **{side: ["b"]})
    with pytest.raises(DataError, match="train side alone") as caught:
        calibration_rows(dataset, count=1)
    assert caught.value.items == (f"row b: also in {side}",)


def test_a_row_that_was_never_trained_on_does_not_calibrate(tmp_path) -> None:
    with pytest.raises(DataError, match="train side alone"):
        calibration_rows(_dataset(tmp_path, train=["a"], calibration=["a", "z"]), count=1)


def test_too_few_rows_are_refused_with_both_numbers(tmp_path) -> None:
    with pytest.raises(DataError, match="too few") as caught:
        calibration_rows(_dataset(tmp_path, train=["a"], calibration=["a"]), count=8)
    assert "1 rows" in caught.value.seen and "8 rows" in caught.value.expected


def test_only_a_line_feed_ends_a_row(tmp_path) -> None:
    rows = calibration_rows(_dataset(tmp_path, train=["a\u2028b"], calibration=["a\u2028b"]), count=1)
    assert [row["id"] for row in rows] == ["a\u2028b"]


def test_the_prepared_data_set_calibrates_with_training_rows_only(tiny_dataset) -> None:
    rows = calibration_rows(tiny_dataset, count=8)
    evaluated = {json.loads(line)["id"] for line in (tiny_dataset / "evaluation.jsonl").read_text().splitlines()}
    assert len(rows) == 8 and not {row["id"] for row in rows} & evaluated


def test_rows_are_rendered_with_the_chat_template_and_cut_rows_are_counted(tmp_path, tiny_base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    row = _row("a")
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert render_calibration(tokenizer, [row], max_length=512) == Calibration(("a",), (tuple(ids),), 0)
    cut = render_calibration(tokenizer, [row], max_length=5)
    assert cut.token_ids == (tuple(ids[:5]),) and cut.truncated == 1


def test_too_few_tokens_for_the_hessian_are_refused_with_the_rows_needed() -> None:
    calibration = Calibration(("a", "b"), ((1,) * 50, (1,) * 50), 0)
    check_enough_tokens(calibration, widest=100)
    with pytest.raises(DataError, match="stable Hessian") as caught:
        check_enough_tokens(calibration, widest=1536)
    assert "at least 31 rows" in caught.value.remedy
