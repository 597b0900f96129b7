"""Charts as inline SVG: lines, histograms, heat maps, stacked bars.

Numbers are rounded: equal data gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunegate.pages.parts import escape

_COLOURS = ("#2f6fbb", "#c8641f", "#2f8f5b", "#8a4fb0", "#a33b52")
#: For many parts of one whole: dark and light ones take turns.
_PART_COLOURS = (
    "#2f6fbb", "#e0a458", "#2f8f5b", "#b58bd0", "#a33b52", "#7fb8d8", "#8c6d46", "#9ac28a", "#5b4b8a", "#c9c2b2",
)  # fmt: skip
#: Keeps text legible where a line passes behind it.
_HALO = "paint-order:stroke;stroke:var(--ground);stroke-width:4px"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 300, 84, 42, 12, 16


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step) * step
    return [round(first + i * step, 10) for i in range(int((high - first) / step + 1e-9) + 1)]


def _legend(names: Sequence[str], colours: Sequence[str] = _COLOURS) -> str:
    items = (
        f'<span><i style="background:{colours[i % len(colours)]}"></i>{escape(n)}</span>' for i, n in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _frame(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    lines = []
    for value in ticks(y.low, y.high):
        lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(x.low, x.high, 8):
        lines.append(f'<text x="{x(value)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(
        f'<text x="14" y="{_HEIGHT / 2 - 14}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2 - 14})">'
        f"{escape(y_label)}</text>"
    )
    return "".join(lines)


def _svg(body: str, description: str, height: int = _HEIGHT) -> str:
    drawn = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(description)}">{body}</svg>'
    return f'<div class="chart">{drawn}</div>'  # which a phone scrolls, so that its words can be read


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    marks: Mapping[str, float] | None = None,
    joined: bool = True,
) -> str:
    """Lines over a common axis. Points that are not finite are left out; a series of one point is a dot.

    Args:
        series: name → points.
        x: what is to the right, with its unit.
        y: what is upwards, with its unit.
        marks: vertical lines with a name.
        joined: whether the points of a series are joined; else they are dots.
    """
    clean = {
        name: [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)] for name, points in series.items()
    }
    points = [point for line in clean.values() for point in line]
    if not points:
        return '<p class="note">Nothing was recorded.</p>'
    marks = marks or {}
    xs, ys = [*(p[0] for p in points), *marks.values()], [p[1] for p in points]
    pad = (max(ys) - min(ys)) * 0.06 or abs(ys[0]) * 0.1 or 1.0
    scale_x = _Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    places = _label_rows([(name, scale_x(at)) for name, at in sorted(marks.items(), key=lambda item: item[1])])
    top = _TOP + 16 * (max((row for _, _, row in places), default=-1) + 1)
    scale_y = _Scale(min(ys) - pad, max(ys) + pad, _HEIGHT - _BOTTOM, top)
    body = [_frame(scale_x, scale_y, x, y)]
    for i, line in enumerate(clean.values()):
        colour = _COLOURS[i % len(_COLOURS)]
        if joined:
            path = " ".join(f"{scale_x(a)},{scale_y(b)}" for a, b in line)
            body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(line) <= 40 or not joined:
            body += [f'<circle cx="{scale_x(a)}" cy="{scale_y(b)}" r="3" fill="{colour}"/>' for a, b in line]
    body += [_mark(name, at, _TOP + 16 * row, _HEIGHT - _BOTTOM) for name, at, row in places]
    return _legend(list(clean)) + _svg("".join(body), f"{y} over {x}")


def histogram(
    values: Mapping[str, Sequence[float]],
    *,
    x: str,
    marks: Mapping[str, float] | None = None,
    bins: int = 30,
    counted: str = "rows",
) -> str:
    """Counts of each series in common bins, drawn as steps; ``marks`` are vertical lines with a name."""
    marks = marks or {}
    flat = [v for series in values.values() for v in series]
    if not flat:
        return '<p class="note">Nothing was counted.</p>'
    low, high = min(flat), max([*flat, *marks.values()])
    high = high if high > low else low + 1
    width = (high - low) / bins
    counts = {name: _counts(series, low, width, bins) for name, series in values.items()}
    scale_x = _Scale(low, high, _LEFT, _WIDTH - _RIGHT)
    scale_y = _Scale(0, max(max(c) for c in counts.values()) * 1.08 or 1, _HEIGHT - _BOTTOM, _TOP)
    body = [_frame(scale_x, scale_y, x, counted)]
    for i, count in enumerate(counts.values()):
        colour = _COLOURS[i % len(_COLOURS)]
        steps = [f"{scale_x(low)},{scale_y(0)}"]
        for b, c in enumerate(count):
            steps += [f"{scale_x(low + b * width)},{scale_y(c)}", f"{scale_x(low + (b + 1) * width)},{scale_y(c)}"]
        steps.append(f"{scale_x(high)},{scale_y(0)}")
        body.append(f'<polygon fill="{colour}" fill-opacity=".18" stroke="{colour}" points="{" ".join(steps)}"/>')
    for name, value in marks.items():
        at = scale_x(value)
        body.append(
            f'<line stroke="#b3261e" stroke-dasharray="5 4" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        body.append(f'<text x="{at - 6}" y="{_TOP + 12}" text-anchor="end">{escape(name)}</text>')
    return _legend(list(values)) + _svg("".join(body), f"{counted} over {x}")


def _counts(series: Sequence[float], low: float, width: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in series:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return counts


def heat_map(values: Mapping[str, Mapping[int, float]], *, x: str, high: float) -> str:
    """A coloured cell for every value, with the number in it where there is room, and always as its tooltip.

    Args:
        values: name of a row → number of a column → value from 0 to ``high``; an absent column leaves a gap.
        x: what the columns are.
        high: the value of the fullest colour.
    """
    columns = sorted({column for row in values.values() for column in row})
    if not columns:
        return '<p class="note">Nothing was recorded.</p>'
    left, row_height = 110, 28
    bottom = _TOP + row_height * len(values)
    scale = _Scale(columns[0], columns[-1] + 1, left, _WIDTH - _RIGHT)
    body = []
    for place, (name, row) in enumerate(values.items()):
        top = _TOP + place * row_height
        body.append(f'<text class="ink" x="{left - 8}" y="{top + 18}" text-anchor="end">{escape(name)}</text>')
        body += [_cell(row[c], high, scale(c), top, scale(c + 1), row_height, f"{name}, {x} {c}") for c in sorted(row)]
    for value in ticks(columns[0], columns[-1], 12):
        if value == int(value):
            middle = round((scale(value) + scale(value + 1)) / 2, 2)
            body.append(f'<text x="{middle}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    body.append(f'<text x="{(left + _WIDTH - _RIGHT) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x)}</text>')
    return _svg("".join(body), f"a value of each {x}", bottom + 42)


def _cell(value: float, high: float, left: float, top: float, right: float, height: float, name: str) -> str:
    """One cell of a heat map: the lighter the colour, the lower the value; an empty frame is 0."""
    share = min(max(value / (high or 1.0), 0.0), 1.0)
    width = round(right - left - 1, 2)
    cell = (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height - 2}" rx="2" fill="{_COLOURS[0]}" '
        f'fill-opacity="{round(share, 3):g}" stroke="{_COLOURS[0]}" stroke-opacity=".35">'
        f"<title>{escape(name)}: {escape(value)}</title></rect>"
    )
    label = escape(value)
    if width < 7 * len(label) + 6:
        return cell
    tone = ' style="fill:#fff"' if share > 0.55 else ' class="ink"'
    return cell + f'<text{tone} x="{round((left + right) / 2, 2)}" y="{top + 17}" text-anchor="middle">{label}</text>'


def stacked_bars(bars: Mapping[str, Mapping[str, float]], *, x: str, marks: Mapping[str, float] | None = None) -> str:
    """A bar a name, made of its parts; the number of a part is its tooltip, and in it where there is room.

    Args:
        bars: name of a bar → name of a part → length, from 0 on; equal parts have one colour.
        x: what the lengths are, with their unit.
        marks: vertical lines with a name, up to the first that no bar reaches.
    """
    sums = {name: sum(parts.values()) for name, parts in bars.items()}
    if not any(sums.values()):
        return '<p class="note">Nothing was counted.</p>'
    longest = max(sums.values())
    ordered = sorted((marks or {}).items(), key=lambda item: item[1])
    beyond = next((value for _, value in ordered if value >= longest), longest)
    scale = _Scale(0, beyond * 1.04, 8, _WIDTH - _RIGHT)
    parts = list(dict.fromkeys(part for found in bars.values() for part in found))
    places = _label_rows([(name, scale(value)) for name, value in ordered if value <= scale.high])
    top, row = 16 * (max((line for _, _, line in places), default=-1) + 1) + 10, 58
    bottom = top + row * len(bars)
    body = []
    for value in ticks(0, scale.high, 8):
        body.append(f'<line class="axis" x1="{scale(value)}" x2="{scale(value)}" y1="{top}" y2="{bottom}"/>')
        body.append(f'<text x="{scale(value)}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    for place, (name, found) in enumerate(bars.items()):
        y, start = top + place * row, 0.0
        for part, length in found.items():
            ends = scale(start), scale(start + length)
            body.append(_part(f"{name}, {part}", length, *ends, y + 22, parts.index(part)))
            start += length
    body += [_mark(name, at, 12 + 16 * line, bottom) for name, at, line in places]
    for place, name in enumerate(bars):
        told = f"{escape(name)}: {escape(sums[name])}"
        body.append(f'<text class="ink" style="{_HALO}" x="8" y="{top + place * row + 16}">{told}</text>')
    body.append(f'<text x="{_WIDTH / 2:g}" y="{bottom + 34}" text-anchor="middle">{escape(x)}</text>')
    return _legend(parts, _PART_COLOURS) + _svg("".join(body), f"parts of {x}", bottom + 42)


def _label_rows(labels: Sequence[tuple[str, float]]) -> list[tuple[str, float, int]]:
    """(name, place, row): each label below those to its left that reach it, so that no line crosses them."""
    placed: list[tuple[str, float, int]] = []
    for name, at in labels:
        above = [line for other, place, line in placed if _label_left(other, place) + _label_width(other) > at]
        if (left := _label_left(name, at)) < at:
            above += [line for _, place, line in placed if place >= left]
        placed.append((name, at, max(above, default=-1) + 1))
    return placed


def _label_width(name: str) -> float:
    return 7.0 * len(name) + 10


def _label_left(name: str, at: float) -> float:
    """Beside its line, to the right where there is room."""
    width = _label_width(name)
    return at + 4 if at + width < _WIDTH else at - width


def _mark(name: str, at: float, high: float, bottom: float) -> str:
    """A line with its name at the top."""
    line = f'<line stroke="#b3261e" stroke-dasharray="5 4" x1="{at}" x2="{at}" y1="{high - 10}" y2="{bottom}"/>'
    return line + f'<text style="{_HALO}" x="{round(_label_left(name, at), 2)}" y="{high}">{escape(name)}</text>'


def _part(name: str, length: float, left: float, right: float, top: float, place: int) -> str:
    """One part of a stacked bar."""
    width = round(right - left, 2)
    drawn = (
        f'<rect x="{left}" y="{top}" width="{width}" height="28" fill="{_PART_COLOURS[place % len(_PART_COLOURS)]}">'
        f"<title>{escape(name)}: {escape(length)}</title></rect>"
    )
    label = escape(length)
    if width < 7 * len(label) + 6:
        return drawn
    middle, tone = round((left + right) / 2, 2), "#1c2330" if place % 2 else "#fff"
    return drawn + f'<text style="fill:{tone}" x="{middle}" y="{top + 18}" text-anchor="middle">{label}</text>'
