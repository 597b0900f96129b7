"""What each format becomes, row by row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.prepare.conftest import Prepared, chat, questions

from tunegate.contracts.errors import DataError
from tunegate.contracts.settings import parse_settings
from tunegate.prepare.formats import convert, detect_format
from tunegate.prepare.read import RawRow, read_source
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.step import run

TABLE = {
    "messages": (chat("q", "a", system="s"), ["system: s", "user: q", "assistant: a"]),
    "prompt_completion of text": ({"prompt": "q ", "completion": " a"}, ["user: q", "assistant: a"]),
    "prompt_completion of messages": (
        {"prompt": [{"role": "user", "content": "q "}], "completion": [{"role": "assistant", "content": " a"}]},
        ["user: q ", "assistant:  a"],
    ),
    "alpaca": ({"instruction": "do", "output": "done"}, ["user: do", "assistant: done"]),
    "alpaca with input and system": (
        {"instruction": "do", "input": "this", "output": "done", "system": "s"},
        ["system: s", "user: do\n\nthis", "assistant: done"],
    ),
    "alpaca with empty input": ({"instruction": "do", "input": "", "output": "done"}, ["user: do", "assistant: done"]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        ["system: s", "user: q", "assistant: a"],
    ),
    "sharegpt with a tool": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "call"},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "a"},
            ]
        },
        ["user: q", "assistant: call", "tool: 42", "assistant: a"],
    ),
}


def _row(values: dict[str, Any]) -> RawRow:
    return RawRow("rows.jsonl", "rows.jsonl:1", values)


@pytest.mark.parametrize("name", TABLE)
def test_a_format_becomes_these_turns(name: str) -> None:
    values, expected = TABLE[name]
    row = _row({**values, "source": "web"})
    example = convert(row, detect_format([row]))
    assert [f"{turn['role']}: {turn['content']}" for turn in example.messages] == expected
    assert json.loads(example.fields) == {"source": "web"}


def test_a_column_that_is_null_counts_as_absent() -> None:
    assert detect_format([_row({"messages": [], "text": None})]) == "messages"


def test_a_completion_of_several_messages_is_refused_because_only_one_would_be_trained() -> None:
    answer = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="a completion of several messages"):
        convert(_row({"prompt": [{"role": "user", "content": "q"}], "completion": answer}), "prompt_completion")


def test_each_assistant_turn_becomes_a_row_with_all_that_came_before(prepare: Any) -> None:
    turns = ["one?", "One.", "two?", "Two."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    prepared: Prepared = prepare([*questions(40), {"messages": messages, "tag": 1}])
    rows = [row for row in prepared.all() if row["id"].endswith(("-0", "-1"))]
    assert [row["prompt"] for row in rows] == [messages[:1], messages[:3]]
    assert [row["completion"] for row in rows] == [messages[1:2], messages[3:]]
    assert rows[0]["id"][:-2] == rows[1]["id"][:-2]
    assert [json.loads(row["fields"]) for row in rows] == [{"tag": 1}] * 2


def test_evaluation_rows_say_of_which_conversation_they_are_turns(prepare: Any) -> None:
    """They win and lose together, and the gate must not take them for independent rows."""
    asked = ("user", "assistant", "user", "assistant")
    talks = [
        {"messages": [{"role": role, "content": f"{topic} {turn}?"} for turn, role in enumerate(asked)]}
        for topic in ("apples", "bridges", "clouds", "dragons", "engines", "forests", "glaciers", "harbours")
    ]
    prepared: Prepared = prepare([*questions(40), *talks], evaluation_fraction=0.5)
    held = prepared.rows("evaluation")
    turns = [row for row in held if row["id"].endswith(("-0", "-1"))]
    assert turns and all(row["conversation"] == row["id"][:-2] for row in turns)
    others = [row for row in prepared.all() if row not in turns]
    assert others and not any("conversation" in row for row in others), "train files keep their columns"


def test_texts_are_prepared_without_what_only_conversations_need(prepare: Any) -> None:
    prepared: Prepared = prepare([{"text": row["messages"][0]["content"], "n": 1} for row in questions(60)])
    assert prepared.profile["format"] == "text"
    assert list(prepared.rows("train")[0]) == ["id", "text", "fields"]
    assert len(prepared.all()) == 60


def test_a_row_has_its_keys_in_order_and_a_short_id(prepare: Any) -> None:
    row = prepare(questions(40)).rows("train")[0]
    assert list(row) == ["id", "prompt", "completion", "fields"]
    assert len(row["id"]) == 16


def test_a_byte_order_mark_and_blank_lines_lose_no_row(prepare: Any) -> None:
    data = b"\xef\xbb\xbf" + b"\r\n\n".join(json.dumps(row).encode() for row in questions(40)) + b"\n\n"
    assert len(prepare(data).all()) == 40


def test_a_line_separator_inside_a_text_does_not_break_the_row(prepare: Any) -> None:
    text = "before\u2028after\x85end"
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*questions(40), chat(text, "yes")])
    assert text in [row["prompt"][-1]["content"] for row in prepare(data.encode()).all()]


def test_parquet_gives_the_same_rows_as_json_lines(
    prepare: Any, tiny_rows: list[dict[str, Any]], tiny_base: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": row["messages"], "note": row["functions"][0]["name"]} for row in tiny_rows]
    prepared: Prepared = prepare(rows)
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:30]), tmp_path / "folder" / "a.parquet")
    (tmp_path / "folder" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[30:]))
    settings = parse_settings(PrepareSettings, {"validation_fraction": 0.2}, where="prepare")
    run(settings, dataset=str(tmp_path / "folder"), base_model=tiny_base, output=tmp_path / "other")
    for side in ("train", "validation", "evaluation", "calibration"):
        name = f"{side}.jsonl"
        assert (tmp_path / "other" / name).read_bytes() == (prepared.folder / name).read_bytes()


def test_a_hub_data_set_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached here: what is checked is the call, against the library's own signature."""
    import inspect

    import datasets

    signature, calls = inspect.signature(datasets.load_dataset), []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        calls.append(signature.bind(*args, **kwargs).arguments)
        return questions(3)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = read_source("org/name@abc123", hub_split="test")
    assert [row.values for row in source.rows] == questions(3)
    assert (calls[0]["path"], calls[0]["revision"], calls[0]["split"]) == ("org/name", "abc123", "test")
    assert len(source.digest) == 64
