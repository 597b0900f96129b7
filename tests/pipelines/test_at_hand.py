"""What the lint can look into: the base and the rows as they lie there, and the reason where they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunegate.preflight.lint import Context, lint
from tunegate_pipelines.at_hand import SAMPLED_ROWS, context_at_hand
from tunegate_pipelines.recipe import resolve

POLICY = {
    "checks": [
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1},
    ]
}


def at_hand(**addresses: str) -> Context:
    sections = resolve({}, {"gate": {"policy": POLICY}})
    return context_at_hand(sections, **{"base_model": "org/name@abc", "dataset": "org/rows@abc", **addresses})


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def conversation(*answers: str) -> dict[str, Any]:
    turns = [({"role": "user", "content": "?"}, {"role": "assistant", "content": answer}) for answer in answers]
    return {"messages": [message for pair in turns for message in pair]}


def test_a_bases_config_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    found = at_hand(base_model=str(tmp_path))
    assert found.base_config == {"model_type": "llama", "max_position_embeddings": 512}
    assert [f.rule for f in lint(found).findings] == ["max-length"]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_a_config_that_cannot_be_read_is_named_and_left_to_the_steps(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "cannot be read" in at_hand(base_model=str(tmp_path)).absent["base_config"]


def test_what_lies_in_a_hub_is_absent_with_its_name() -> None:
    absent = at_hand().absent
    assert "org/name@abc" in absent["base_config"]
    assert "org/rows@abc" in absent["rows"]


def test_a_row_counts_once_for_each_answer_that_is_trained(tmp_path: Path) -> None:
    rows = [conversation("one", "two"), conversation("three"), ""]
    found = at_hand(dataset=str(write_lines(tmp_path / "rows.jsonl", rows))).rows
    assert found is not None
    assert (found.rows, found.completions) == (3, ("one", "two", "three"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "said"},
        {"instruction": "a", "output": "said"},
        {"text": "said"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "said"}]},
    ],
)
def test_every_format_is_read(tmp_path: Path, row: dict[str, Any]) -> None:
    found = at_hand(dataset=str(write_lines(tmp_path / "rows.jsonl", [row]))).rows
    assert found is not None
    assert found.completions == ("said",)


def test_of_a_large_file_a_sample_from_all_over_is_read_and_every_row_counted(tmp_path: Path) -> None:
    rows = [{"text": str(n)} for n in range(10 * SAMPLED_ROWS + 7)]
    found = at_hand(dataset=str(write_lines(tmp_path / "rows.jsonl", rows))).rows
    assert found is not None
    assert found.rows == len(rows)
    assert SAMPLED_ROWS * 0.9 < len(found.completions) <= SAMPLED_ROWS
    assert int(found.completions[-1]) > 9.9 * SAMPLED_ROWS


@pytest.mark.parametrize("rows", [[], ["{broken"], [{"text": "a"}, {"prompt": "a", "completion": "b"}], [{"a": 1}]])
def test_rows_that_cannot_be_told_are_left_to_prepare(tmp_path: Path, rows: list[Any]) -> None:
    found = at_hand(dataset=str(write_lines(tmp_path / "rows.jsonl", rows)))
    assert found.rows is None
    assert found.absent["rows"]


def test_a_row_that_prepare_would_refuse_is_passed_over(tmp_path: Path) -> None:
    found = at_hand(dataset=str(write_lines(tmp_path / "rows.jsonl", [{"text": "said"}, {"text": ["a"]}, "{broken"])))
    assert found.rows is not None
    assert found.rows.completions == ("said",)


def test_the_demos_rows_are_looked_at_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bfcl_eval")
    monkeypatch.chdir(tmp_path)
    found = at_hand(base_model="demo", dataset="demo")
    assert found.rows is not None
    assert found.rows.rows == 400
    assert "when the run starts" in found.absent["base_config"]
    assert list(tmp_path.iterdir()) == []


def test_the_lint_loads_none_of_the_heavy_libraries() -> None:
    """It is the first task of every run, and a person waits for it."""
    code = (
        "import sys, tunegate_pipelines.launch, tunegate_pipelines.at_hand as a\n"
        "print(sorted({'torch', 'transformers', 'peft', 'trl', 'datasets'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
