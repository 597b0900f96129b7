"""A short way to prepare rows that a test writes down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tunegate.contracts.settings import parse_settings
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.step import run

Row = dict[str, Any]

# A busy machine is no counterexample, and a failure should be the same one for everybody.
hypothesis.settings.register_profile("prepare", deadline=None, derandomize=True)
hypothesis.settings.load_profile("prepare")


def chat(question: str, answer: str, *, system: str = "") -> Row:
    """A row of the format ``messages``."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def questions(count: int) -> list[Row]:
    """Rows that are unlike each other and enough for every side."""
    words = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll")
    return [
        chat(f"{words[i % 11]} {words[i // 11 % 11]} {i * 7919}?", f"{words[i * 3 % 11]} {i}") for i in range(count)
    ]


class Prepared:
    """What a run wrote."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest
        self.profile: dict[str, Any] = json.loads((folder / "profile.json").read_text("utf-8"))

    def rows(self, side: str) -> list[Row]:
        """The rows of one file."""
        return [json.loads(line) for line in (self.folder / f"{side}.jsonl").read_text("utf-8").split("\n") if line]

    def all(self) -> list[Row]:
        """The rows of all sides."""
        return [row for side in ("train", "validation", "evaluation") for row in self.rows(side)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


@pytest.fixture
def prepare(tmp_path: Path, output: Path, tiny_base: Path) -> Callable[..., Prepared]:
    """Prepares rows (a list, or the bytes of a JSON Lines file); settings are keyword arguments."""

    def prepared(rows: Sequence[Row] | bytes, *, to: Path = output, **settings: Any) -> Prepared:
        data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = tmp_path / "rows.jsonl"
        path.write_bytes(data)
        parsed = parse_settings(PrepareSettings, {"validation_fraction": 0.2, **settings}, where="prepare")
        manifest = run(parsed, dataset=str(path), base_model=tiny_base, output=to)
        return Prepared(to, manifest.content_digest)

    return prepared
