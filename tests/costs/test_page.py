"""The costs page and its document: a ratio that is right, a comparison that is none, a spike that is seen."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import InputError
from tunegate.costs.measurement import Asked, Measurement, read_measurement, write_measurement
from tunegate.costs.page import costs_page
from tunegate.costs.phases import phases
from tunegate.costs.settings import Load

Measured = Callable[..., Measurement]


def rows_of(html: str, heading: str) -> list[list[str]]:
    section = html[html.index(f"<h2>{heading}</h2>") :]
    table = section[: section.index("</table>")]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]


def test_ratios_are_to_the_first(measured: Measured) -> None:
    html = costs_page([measured("merged"), measured("adapter", factor=1.25)])
    throughput = rows_of(html, "Throughput and memory")
    assert throughput[1] == ["adapter", "60", "0", "1", "51.2", "0.8", "1,875", "1.25"]
    assert rows_of(html, "Time to first token")[1] == [
        "adapter", "13.8", "1.25", "12.5", "1.25", "23.8", "1.25", "26.2", "1.25",
    ]  # fmt: skip
    assert "Of 60 requests p99" in html


def test_measurements_under_other_loads_are_said_to_compare_with_nothing(measured: Measured) -> None:
    other = measured("other", load=Load(at_once=4, requests=60))
    assert "The loads differ" in costs_page([measured(), other])
    assert "The loads differ" not in costs_page([measured(), measured("again")])


def test_memory_that_was_not_measured_has_no_ratio(measured: Measured) -> None:
    html = costs_page([measured("a", memory_bytes=None), measured("b")])
    assert rows_of(html, "Throughput and memory")[0][-2:] == ["not measured", "—"]
    assert rows_of(html, "Throughput and memory")[1][-2:] == ["1,500", "—"]


def test_a_spike_is_in_the_phase_in_which_a_token_was_late_whenever_its_request_began(measured: Measured) -> None:
    asked = list(measured().asked)
    asked[28] = dataclasses.replace(asked[28], gaps_ms=(10.0, 3000.0, 10.0), whole_ms=3120.0)  # late at 31.1 s
    asked[45] = Asked(45.0, "m", 0.0, (), 5.0, "HTTP 503")
    cut = phases(measured(asked=tuple(asked), marks={"switch": 40.0, "loading": 30.0}))
    assert [(phase.name, phase.requests, phase.failed) for phase in cut] == [
        ("before", 30, 0), ("loading", 10, 0), ("switch", 20, 1),
    ]  # fmt: skip
    assert [phase.gap_ms[2] for phase in cut] == [10.0, 3000.0, 10.0]
    assert [phase.first_token_ms[0] for phase in cut] == [100.0, 100.0, 100.0]
    html = costs_page([measured(asked=tuple(asked), marks={"loading": 30.0, "switch": 40.0})])
    assert "3,000" in html and ">switch</text>" in html


def test_what_a_server_says_cannot_become_markup(measured: Measured) -> None:
    evil = "<script>alert(1)</script>"
    assert "<script" not in costs_page([measured(evil, marks={evil: 3.0}, generator=evil, url=evil)])


def test_one_measurement_of_failures_alone_is_drawn_too(measured: Measured) -> None:
    failed = tuple(dataclasses.replace(one, error="HTTP 500") for one in measured().asked)
    assert "Nothing was recorded" in costs_page([measured(asked=failed)])


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "report"},
        {"schema_version": 2},
        {"latency": {}},
        {"seconds": "sixty"},
        {"load": {"rate": -1.0}},
        {"unknown": 1},
        {"asked": [{"at_seconds": 1}]},
    ],
)
def test_another_document_is_refused_with_what_was_seen(
    measured: Measured, tmp_path: Path, changed: dict[str, object]
) -> None:
    path = tmp_path / "m.json"
    write_measurement(measured(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError):
        read_measurement(path)


def test_a_document_is_read_back_as_it_was(measured: Measured, tmp_path: Path) -> None:
    one = measured(marks={"a": 1.5})
    write_measurement(one, tmp_path / "m.json")
    assert read_measurement(tmp_path / "m.json") == one


def test_two_measurements_of_one_name_are_refused(measured: Measured, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_measurement(measured("same"), tmp_path / f"{name}.json")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    result = CliRunner().invoke(app, ["costs", "page", *files, "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert not (tmp_path / "page.html").exists()
