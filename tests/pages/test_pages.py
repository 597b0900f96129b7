"""Pages: they load nothing from anywhere, escape what they show, and are the same for the same data."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tunegate.pages.charts import Interval, histogram, interval_chart, line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import badge, code, facts, link, paragraph, table

EVIL = '<script>alert("x")</script>'


def everything(text: str) -> str:
    charts = [
        line_chart({text: [(0, 1.0), (1, 0.5), (2, float("nan"))]}, x=text, y="loss"),
        histogram({text: [1, 2, 2, 9]}, x="tokens", marks={text: 8}),
        interval_chart([Interval(text, 0.1, -0.05, 0.2, -0.1, "PASS")]),
    ]
    parts = [table([text], [[text], [0.123456], [7]]), facts({text: text}), badge("FAIL"), paragraph(text), code(text)]
    return page(text, [Section(text, "".join([*parts, *charts]), text)], subtitle=text)


def test_what_a_model_answers_cannot_become_markup() -> None:
    assert "<script" not in everything(EVIL)
    assert 'href="&quot;' in link("x", '"><script>')


def test_a_page_loads_nothing() -> None:
    assert not re.search(r'(src|href)="(?!#)|@import|url\(', everything("plain"))


def test_equal_data_gives_equal_bytes() -> None:
    assert everything("plain") == everything("plain")


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, 2.0]])
def test_charts_are_well_formed_for_any_range(values: list[float]) -> None:
    points = list(enumerate(values))
    for chart in (line_chart({"a": [(float(x), y) for x, y in points]}, x="x", y="y"), histogram({"a": values}, x="x")):
        svg = chart[chart.index("<svg") :]
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_no_data_is_said_and_not_drawn() -> None:
    assert "Nothing was recorded" in line_chart({"a": []}, x="x", y="y")
    assert "Nothing was counted" in histogram({"a": []}, x="x")
    assert "No comparison" in interval_chart([])
