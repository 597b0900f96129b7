"""Errors: they cross a process boundary whole, with the exit code that scripts rely on."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from tunegate.contracts.errors import ITEMS_SHOWN, AdapterError, GateRefused, RunError, error_from_line, error_line


def test_an_error_says_what_failed_what_was_seen_expected_and_to_do() -> None:
    error = AdapterError("No.", seen="a", expected="b", remedy="c", items=[str(i) for i in range(20)])
    text = str(error)
    assert all(part in text for part in ("No.", "seen:     a", "expected: b", "to do:    c", "- 7", "12 more"))
    assert "- 8" not in text


@pytest.mark.parametrize("kind", [AdapterError, RunError, GateRefused])
def test_an_error_written_as_a_line_is_read_back_the_same(kind: type[AdapterError]) -> None:
    error = kind("No.", seen="a\nb", expected="ü", remedy="c", items=["x"])
    again = error_from_line("2026-01-01 INFO " + error_line(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert "\n" not in error_line(error)


@pytest.mark.parametrize("count", [0, ITEMS_SHOWN, ITEMS_SHOWN + 1, 100_000])
def test_a_line_of_many_items_stays_short_and_counts_them_however_often_it_is_passed_on(count: int) -> None:
    error = AdapterError("No.", seen="a", expected="b", remedy="c", items=[f"row {i}" for i in range(count)])
    once = error_from_line(error_line(error))
    twice = error_from_line(error_line(once))
    assert str(twice) == str(once) == str(error)
    assert len(error_line(error)) < 500
    assert once.items == error.items[:ITEMS_SHOWN]


def test_a_pickled_error_keeps_every_item() -> None:
    error = AdapterError("No.", seen="a", expected="b", remedy="c", items=[str(i) for i in range(20)])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.items) == (AdapterError, str(error), error.items)
    passed_on = error_from_line(error_line(error))
    assert str(pickle.loads(pickle.dumps(passed_on))) == str(error)


def test_a_launcher_ends_with_the_errors_own_exit_code() -> None:
    script = (
        "from tunegate.contracts.errors import GateRefused, reports_errors\n"
        "@reports_errors\n"
        "def launch():\n"
        "    raise GateRefused('No.', seen='a', expected='b', remedy='c')\n"
        "launch()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert str(error_from_line(ended.stderr.splitlines()[-1])).startswith("No.")
