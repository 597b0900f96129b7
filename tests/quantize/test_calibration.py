"""Calibration rows come from the train side alone, and are what training rendered."""

import json
from pathlib import Path

import pytest

from tunegate.contracts.errors import DataError
from tunegate.models.load import load_tokenizer
from tunegate.quantize.calibration import (
    Calibration,
    calibration_rows,
    check_enough_tokens,
    described,
    render_calibration,
)


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
    assert render_calibration(tokenizer, [row], max_length=512) == Calibration(("a",), (tuple(ids),), 0, ("",))
    cut = render_calibration(tokenizer, [row], max_length=5)
    assert cut.token_ids == (tuple(ids[:5]),) and cut.truncated == 1


def _of(*rows: tuple[int, ...]) -> Calibration:
    return Calibration(tuple(map(str, range(len(rows)))), rows, 0, ("",) * len(rows))


def test_too_few_tokens_for_the_hessian_are_refused_with_the_rows_needed() -> None:
    calibration = _of(tuple(range(50)), tuple(range(50, 100)))
    check_enough_tokens(calibration, widest=100)
    with pytest.raises(DataError, match="stable Hessian") as caught:
        check_enough_tokens(calibration, widest=1536)
    assert "at least 31 rows" in caught.value.remedy


def test_a_beginning_that_rows_share_counts_once_for_the_hessian() -> None:
    """A causal model computes the same inputs for it in every row: they add nothing to the Hessian's rank."""
    shared = tuple(range(40))
    calibration = _of((*shared, 1, 2), (*shared, 1, 3), (*shared, 4), (7, *shared))
    assert calibration.tokens == 166 and calibration.contexts == 41 + 40 + 1 + 1 + 1 + 1
    with pytest.raises(DataError, match="stable Hessian"):
        check_enough_tokens(calibration, widest=100)


def test_the_rank_of_the_inputs_is_at_most_what_is_counted(tiny_base, tiny_dataset) -> None:
    """Against the model itself: the rank of what its last layer really gets, on rows that share their beginning."""
    import torch

    from tunegate.models.load import load_causal_lm

    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    rows = calibration_rows(tiny_dataset, count=3)
    calibration = render_calibration(tokenizer, [{**rows[0], "id": str(n)} for n in range(3)], max_length=50)
    inputs: list = []
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    with torch.no_grad():
        for ids in calibration.token_ids:
            model(torch.tensor([ids]))
    rank = int(torch.linalg.matrix_rank(torch.cat(inputs).double()))
    assert calibration.tokens == 150 and rank <= calibration.contexts == 50


def test_an_evaluation_row_under_another_name_is_caught(tmp_path) -> None:
    """Ids can be given anew by whoever joins data sets; what a row says cannot."""
    dataset = _dataset(tmp_path, train=["a", "b"], calibration=["a", "b"], evaluation=["b"])
    renamed = (
        (dataset / "evaluation.jsonl")
        .read_text()
        .replace('"id": "b"', '"id": "z"')
        .replace("question b", "question  b ")
    )
    (dataset / "evaluation.jsonl").write_text(renamed)
    with pytest.raises(DataError, match="train side alone") as caught:
        calibration_rows(dataset, count=1)
    assert caught.value.items == ("row b: says what row z of evaluation says",)


def test_a_training_row_whose_words_were_changed_does_not_calibrate(tmp_path) -> None:
    dataset = _dataset(tmp_path, train=["a"], calibration=["a"])
    changed = (dataset / "calibration.jsonl").read_text().replace("question a", "another question")
    (dataset / "calibration.jsonl").write_text(changed)
    with pytest.raises(DataError) as caught:
        calibration_rows(dataset, count=1)
    assert caught.value.items == ("row a: not in train",)


def test_what_was_seen_is_recorded() -> None:
    calibration = Calibration(("a", "b", "c"), ((1,), (1, 2), (1, 2, 3)), 1, ("chat", "tool", "chat"))
    told = described(calibration, max_length=3)
    assert (told["rows"], told["tokens"], told["contexts"], told["truncated"], told["max_length"]) == (3, 6, 3, 1, 3)
    assert told["lengths"] == {"least": 1, "median": 2, "most": 3} and told["tasks"] == {"chat": 2, "tool": 1}
