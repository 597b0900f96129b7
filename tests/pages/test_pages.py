"""Pages: they load nothing from anywhere, escape what they show, and are the same for the same data."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tunegate.pages.charts import heat_map, histogram, line_chart, stacked_bars
from tunegate.pages.forest import Interval, forest_plot
from tunegate.pages.page import Section, page
from tunegate.pages.parts import Link, badge, code, facts, folded, link, paragraph, side_by_side, table

EVIL = '<script>alert("x")</script>'


def everything(text: str) -> str:
    charts = [
        line_chart({text: [(0, 1.0), (1, 0.5), (2, float("nan"))]}, x=text, y="loss"),
        line_chart({text: [(0, 1.0), (1, 0.5)]}, x=text, y="ms", marks={text: 3.0}, joined=False),
        histogram({text: [1, 2, 2, 9]}, x="tokens", marks={text: 8}),
        forest_plot([Interval(text, 0.1, -0.05, 0.2, -0.1, "PASS")]),
        heat_map({text: {0: 1, 1: 3}}, x=text, high=3),
        stacked_bars({text: {text: 1.5}}, x=text, marks={text: 1}),
    ]
    parts = [table([text], [[text], [0.123456], [7]]), facts({text: text}), badge("FAIL"), paragraph(text), code(text)]
    parts += [side_by_side(text, {text: text}, {text: text}), folded(text, table([text], [[Link(text, "#")]]))]
    return page(text, [Section(text, "".join([*parts, *charts]), text)], subtitle=text)


def svg_of(chart: str) -> str:
    """The picture alone, without its legend and what holds it."""
    return chart[chart.index("<svg") : chart.rindex("</svg>") + len("</svg>")]


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
        svg = svg_of(chart)
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_no_data_is_said_and_not_drawn() -> None:
    assert "Nothing was recorded" in line_chart({"a": []}, x="x", y="y")
    assert "Nothing was counted" in histogram({"a": []}, x="x")
    assert "No comparison" in forest_plot([])
    assert "Nothing was recorded" in heat_map({"a": {}}, x="layer", high=1)
    assert "Nothing was counted" in stacked_bars({}, x="GB")


def test_a_heat_map_shows_every_value_once_and_colours_it_by_its_size() -> None:
    chart = heat_map({"q_proj": {0: 24, 1: 12}, "up_proj": {1: 0}}, x="layer", high=24)
    cells = ElementTree.fromstring(svg_of(chart)).findall("rect")
    assert [cell.find("title").text for cell in cells] == [  # type: ignore[union-attr]
        "q_proj, layer 0: 24",
        "q_proj, layer 1: 12",
        "up_proj, layer 1: 0",
    ]
    assert [float(cell.attrib["fill-opacity"]) for cell in cells] == [1.0, 0.5, 0.0]
    edges = [float(cell.attrib["x"]) for cell in cells]
    assert edges[1] == edges[2] > edges[0]  # one column, one place


@pytest.mark.parametrize("layers", [1, 126])
def test_a_heat_map_is_well_formed_for_a_single_layer_and_for_the_largest_models(layers: int) -> None:
    chart = heat_map({kind: dict.fromkeys(range(layers), 7) for kind in ("q_proj", "k_proj")}, x="layer", high=24)
    assert len(ElementTree.fromstring(svg_of(chart)).findall("rect")) == 2 * layers
    right = max(
        float(c.attrib["x"]) + float(c.attrib["width"]) for c in ElementTree.fromstring(svg_of(chart)).findall("rect")
    )
    assert right <= 900


def test_parts_of_a_bar_lie_end_to_end_in_proportion_and_have_one_colour_in_every_bar() -> None:
    chart = stacked_bars({"kept": {"weights": 10, "activations": 30}, "twice": {"activations": 10}}, x="GB")
    weights, kept, twice = ElementTree.fromstring(svg_of(chart)).findall("rect")
    left, width = (lambda rect, name: float(rect.attrib[name])), 3 * float(weights.attrib["width"])
    assert left(kept, "x") == pytest.approx(left(weights, "x") + left(weights, "width"), abs=0.02)
    assert left(kept, "width") == pytest.approx(width, rel=0.001)
    assert kept.attrib["fill"] == twice.attrib["fill"] != weights.attrib["fill"]
    assert kept.find("title").text == "kept, activations: 30"  # type: ignore[union-attr]


def test_marks_reach_to_the_first_that_no_bar_does_and_their_names_lie_apart() -> None:
    marks = {"small": 10.0, "small too": 11.0, "large": 100.0, "larger": 1000.0}
    chart = stacked_bars({"a": {"b": 50.0}}, x="GB", marks=marks)
    texts = {t.text: t for t in ElementTree.fromstring(svg_of(chart)).findall("text")}
    assert "large" in texts
    assert "larger" not in texts
    assert texts["small"].attrib["y"] != texts["small too"].attrib["y"]


#: A phone's width in CSS pixels, and what is left of it between the margins.
PHONE, ROOM = 390, 350
WIDE = "the quantized model loses no more than its margin, whatever the rows are called " * 3


def test_a_page_fits_a_phone_and_what_is_wider_scrolls_in_its_own_frame() -> None:
    document = everything(WIDE)
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in document
    fixed = re.findall(r"([^{}]*){[^{}]*?(?<![-\w])(?:min-)?width:(\d+)px", document)
    assert {selector.strip() for selector, width in fixed if int(width) > ROOM} == {".chart svg"}
    assert not re.search(r'<(?:svg|table|div|img)[^>]* width="\d+"', document)
    for tag, frame in (("<table", '<div class="scroll">'), ('<svg viewBox="', '<div class="chart">')):
        places = [match.start() for match in re.finditer(tag, document)]
        assert places
        assert all(document[:place].endswith(frame) for place in places)


def test_a_row_of_long_texts_names_its_cells_where_columns_would_be_slivers() -> None:
    drawn = table(("rule", "reason", "rows"), [("a", "because " * 10, 3)])
    assert '<table class="prose">' in drawn
    assert re.findall(r'data-name="([^"]*)"', drawn) == ["rule", "reason", "rows"]
    assert "prose" not in table(("rule", "rows"), [("a", 3)])


@pytest.mark.parametrize("text", [WIDE, "46d05ae6100f" * 20], ids=["words", "one long word"])
def test_a_browser_as_wide_as_a_phone_scrolls_no_page_sideways(tmp_path: Path, text: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    measure = "document.title = frame.contentDocument.documentElement.scrollWidth"
    (tmp_path / "phone.html").write_text(
        f'<iframe id="frame" style="width:{PHONE}px;height:800px;border:0" onload="{measure}" '
        f'srcdoc="{html.escape(everything(text), quote=True)}"></iframe>',
        "utf-8",
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--hide-scrollbars", "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "phone.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"<title>{PHONE}</title>" in shown
