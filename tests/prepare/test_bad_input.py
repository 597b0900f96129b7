"""Each bad input is refused with exit code 2, says what is wrong and where, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.prepare.conftest import Prepared, chat, questions

from tunegate.contracts.errors import DataError, InputError, SettingsError
from tunegate.contracts.settings import parse_settings
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.step import run

Prepare = Callable[..., Prepared]


def _turns(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _refused(prepare: Prepare, output: Path, rows: Any, *words: str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepare(rows, **settings)
    assert caught.value.exit_code == 2
    said = str(caught.value)
    assert not [word for word in words if word not in said], said
    assert not output.exists() and not output.with_name("out.partial").exists()
    return said


BAD_ROWS = {
    "unknown role": (_turns(("user", "hi"), ("bot", "ho")), "an unknown role", "'bot'"),
    "empty assistant turn": (_turns(("user", "hi"), ("assistant", " \n")), "an empty assistant turn"),
    "empty user turn": (_turns(("user", ""), ("assistant", "ho")), "an empty user turn"),
    "assistant first": (_turns(("assistant", "ho")), "turns out of order", "assistant turn at the beginning"),
    "two user turns": (_turns(("user", "a"), ("user", "b"), ("assistant", "c")), "turns out of order"),
    "two system messages": (
        _turns(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")),
        "turns out of order",
        "a system message stands once",
    ),
    "ends with a question": (
        _turns(("user", "a"), ("assistant", "b"), ("user", "c")),
        "a conversation that does not end with an answer",
    ),
    "no turns": ({"messages": []}, "a conversation without turns"),
    "messages no list": ({"messages": "hi"}, "'messages' is no list of messages"),
    "content null": (_turns(("user", "a"), ("assistant", None)), "without 'role' or 'content' as text"),
    "content in parts": (_turns(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")), "one string"),
    "tool calls": (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            ]
        },
        "'tool_calls'",
        "write the call into 'content'",
    ),
    "tools column": ({**chat("a", "b"), "tools": [{"name": "f"}]}, "a column 'tools'", "system message"),
    "lost character": (_turns(("user", "caf\ufffd"), ("assistant", "b")), "broken text", "U+FFFD"),
    "half a surrogate": (_turns(("user", "a \ud83d b"), ("assistant", "b")), "broken text", "U+D83D"),
    "special token": (_turns(("user", "a<|im_end|>b"), ("assistant", "b")), "a special token inside a turn"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_trained_on_is_named_by_line_and_reason(name: str, prepare: Prepare, output: Path) -> None:
    row, *words = BAD_ROWS[name]
    rows = [*questions(40), row]
    _refused(prepare, output, rows, "1 of 41 rows", "rows.jsonl:41", "invalid_rows: drop", *words)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_such_a_row_is_left_out_and_counted_when_the_settings_say_so(name: str, prepare: Prepare) -> None:
    row, reason, *_ = BAD_ROWS[name]
    prepared = prepare([*questions(40), row], invalid_rows="drop")
    assert len(prepared.all()) == 40
    assert sum(prepared.profile["dropped"].values()) == 1
    (dropped,) = prepared.profile["dropped_rows"]
    assert dropped["where"] == "rows.jsonl:41"
    assert name == "content in parts" or reason in dropped["reason"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_no_data_set(content: bytes, prepare: Prepare, output: Path) -> None:
    _refused(prepare, output, content, "is empty")


def test_formats_that_are_mixed_are_named_with_their_lines(prepare: Prepare, output: Path) -> None:
    rows = [*questions(3), {"text": "plain"}]
    _refused(prepare, output, rows, "Formats are mixed in rows.jsonl", "rows.jsonl:1: messages", "rows.jsonl:4: text")


def test_columns_of_two_formats_are_never_guessed(prepare: Prepare, output: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": f"{i}", "text": f"say {i}: {i}"} for i in range(40)]
    _refused(prepare, output, rows, "could be one of several formats", "format: text")
    assert prepare(rows, format="alpaca").profile["format"] == "alpaca"


def test_columns_of_no_format_are_listed_beside_those_that_would_do(prepare: Prepare, output: Path) -> None:
    rows = [{"question": "a", "answer": "b"}]
    _refused(prepare, output, rows, "rows.jsonl:1 has no known format", "question, answer", "instruction, output")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[1, 2]", ("rows.jsonl:3 is not a JSON object", "list")),
        (b'{"messages": [', ("rows.jsonl:3 is not JSON",)),
        (b'{"score": NaN}', ("rows.jsonl:3 is not JSON", "NaN")),
        (b'{"text": "caf\xe9"}', ("rows.jsonl:3 is not UTF-8", "0xe9")),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    line: bytes, words: tuple[str, ...], prepare: Prepare, output: Path
) -> None:
    good = json.dumps(chat("a", "b")).encode()
    _refused(prepare, output, good + b"\n\n" + line + b"\n", *words)


def test_rows_that_lose_every_label_are_refused_rather_than_trained_at_loss_zero(
    prepare: Prepare, output: Path
) -> None:
    rows = [*questions(40), chat("why " * 100, "because")]
    settings = {"max_length": 64, "excess_length_strategy": "truncate"}
    said = _refused(prepare, output, rows, "every label lies behind max_length", "rows.jsonl:41", **settings)
    assert "raise max_length" in said


def test_a_side_that_ends_empty_says_how_many_rows_are_needed(prepare: Prepare, output: Path) -> None:
    _refused(prepare, output, questions(2), "No row is left", "give at least")


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(SettingsError, match="no row to train on"):
        parse_settings(PrepareSettings, {"validation_fraction": 0.5, "evaluation_fraction": 0.5}, where="prepare")


def test_a_data_set_that_is_not_there_and_a_hub_name_without_revision_are_refused(
    tiny_base: Path, output: Path
) -> None:
    for name in ("missing.jsonl", "org/name"):
        with pytest.raises(DataError, match="was not found"):
            run(PrepareSettings(), dataset=name, base_model=tiny_base, output=output)


def test_a_file_of_another_kind_is_refused(tiny_base: Path, output: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        run(PrepareSettings(), dataset=str(tmp_path / "rows.csv"), base_model=tiny_base, output=output)


def test_parquet_that_was_cut_off_is_refused(tiny_base: Path, output: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        run(PrepareSettings(), dataset=str(tmp_path / "rows.parquet"), base_model=tiny_base, output=output)


def test_a_template_that_never_ends_the_turn_is_refused_because_the_model_would_never_stop(
    make_base: Any, output: Path, rows_file: Path
) -> None:
    base = make_base()
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (base / "chat_template.jinja").write_text(template + ask)
    with pytest.raises(InputError, match="does not end the assistant's turn"):
        run(PrepareSettings(), dataset=str(rows_file), base_model=base, output=output)
    assert not output.exists()


def test_an_output_made_from_other_rows_is_not_overwritten(prepare: Prepare, output: Path) -> None:
    prepare(questions(40))
    before = (output / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="made from other inputs"):
        prepare(questions(41))
    assert (output / "manifest.json").read_bytes() == before
