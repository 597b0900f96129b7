"""Files: a row is read as it was written, whatever characters it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import read_json_lines


def test_a_row_is_not_broken_at_a_unicode_line_separator(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "a\u2028b\u2029c\u0085d\x1ee\x0cf"}, {"id": "2", "text": "ü"}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n  \n"
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert read_json_lines(tmp_path / "rows.jsonl") == []


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"id": 1}\n{"id":\n[1]\n{"id": "\xff"}\n')
    with pytest.raises(ArtifactError) as caught:
        read_json_lines(tmp_path / "rows.jsonl")
    assert [item.partition(":")[0] for item in caught.value.items] == ["line 2", "line 3", "line 4"]
