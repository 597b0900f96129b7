"""The report of a run: figures under the right model, and nothing invented where something is missing."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from tunegate.preflight.lint import Finding, Linted, Unchecked
from tunegate_pipelines.report import Report, comparison, read_report, show, write_lint
from tunegate_pipelines.run_page import write_pages


def results(exact: float, size: int) -> dict[str, object]:
    tasks = {
        "tool_call": {"metrics": {"exact": exact, "valid": 0.9}, "rows": 100},
        "completion_perplexity": {"metrics": {"nll": 0.7, "perplexity": 2.0139}, "rows": 100},
        "hellaswag": {"metrics": {"acc": 0.31}, "rows": 50},
    }
    return {"tasks": tasks, "model_bytes": size}


def report(**roles: dict[str, object]) -> Report:
    return Report(artifacts=(), results=roles, verdict=None, promotion=None)


def test_each_model_has_its_own_figures_and_a_users_own_task_is_shown() -> None:
    columns, rows = comparison(report(base=results(0.0, 270_000_000), quantized=results(0.413, 163_400_000)))
    assert columns == ["model", "valid calls", "exact calls", "perplexity", "hellaswag acc", "size"]
    assert rows == [
        ["base", "90.0%", "0.0%", "2.014", "0.31", "270.0 MB"],
        ["quantized", "90.0%", "41.3%", "2.014", "0.31", "163.4 MB"],
    ]


def test_measure_that_one_model_lacks_is_a_dash_and_not_a_zero() -> None:
    lacking = {"tasks": {"tool_call": {"metrics": {"valid": 0.5}, "rows": 1}}, "model_bytes": 1}
    _, rows = comparison(report(base=results(0.2, 1), merged=lacking))
    assert rows[1][:5] == ["merged", "50.0%", "–", "–", "–"]


def test_run_that_made_nothing_still_has_a_page(tmp_path: Path) -> None:
    found = read_report(tmp_path)
    screen = io.StringIO()
    show(found, tmp_path, Console(file=screen))
    assert screen.getvalue() == ""
    assert "<html" in write_pages(found, tmp_path).read_text("utf-8")


def test_warnings_of_the_lint_and_what_it_could_not_check_are_on_the_runs_page(tmp_path: Path) -> None:
    warning = Finding("learning-rate", "warning", "train.learning_rate 0.0004 <high>", "lower it", "arXiv:2305.14314")
    write_lint(Linted((warning,), (Unchecked("max-length", "the base lies in a bucket"),)), tmp_path)
    written = write_pages(read_report(tmp_path), tmp_path).read_text("utf-8")
    for told in ("learning-rate", "0.0004 &lt;high&gt;", "lower it", "max-length", "the base lies in a bucket"):
        assert told in written
    assert read_report(tmp_path).to_json()["lint"]["findings"][0]["rule"] == "learning-rate"
