"""Charts as inline SVG: lines, histograms and intervals. Numbers are rounded so that equal data gives equal bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunegate.pages.parts import escape

_COLOURS = ("#2f6fbb", "#c8641f", "#2f8f5b", "#8a4fb0", "#a33b52")
_TONES = {"PASS": "#1f7a4d", "FAIL": "#b3261e", "INCONCLUSIVE": "#b07a10"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 300, 84, 42, 12, 16


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds and the threshold it is held against."""

    label: str
    estimate: float
    lower: float
    upper: float
    threshold: float
    decision: str


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step) * step
    return [round(first + i * step, 10) for i in range(int((high - first) / step + 1e-9) + 1)]


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<span><i style="background:{_COLOURS[i % len(_COLOURS)]}"></i>{escape(n)}</span>' for i, n in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _frame(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    lines = []
    for value in _ticks(y.low, y.high):
        lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x.low, x.high, 8):
        lines.append(f'<text x="{x(value)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(
        f'<text x="14" y="{_HEIGHT / 2 - 14}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2 - 14})">'
        f"{escape(y_label)}</text>"
    )
    return "".join(lines)


def _svg(body: str, description: str, height: int = _HEIGHT) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(description)}">{body}</svg>'


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Lines over a common axis. Points that are not finite are left out; a series of one point is a dot."""
    clean = {
        name: [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)] for name, points in series.items()
    }
    points = [point for line in clean.values() for point in line]
    if not points:
        return '<p class="note">Nothing was recorded.</p>'
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    pad = (max(ys) - min(ys)) * 0.06 or abs(ys[0]) * 0.1 or 1.0
    scale_x = _Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    scale_y = _Scale(min(ys) - pad, max(ys) + pad, _HEIGHT - _BOTTOM, _TOP)
    body = [_frame(scale_x, scale_y, x, y)]
    for i, line in enumerate(clean.values()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(f"{scale_x(a)},{scale_y(b)}" for a, b in line)
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(line) <= 40:
            body += [f'<circle cx="{scale_x(a)}" cy="{scale_y(b)}" r="3" fill="{colour}"/>' for a, b in line]
    return _legend(list(clean)) + _svg("".join(body), f"{y} over {x}")


def histogram(
    values: Mapping[str, Sequence[float]], *, x: str, marks: Mapping[str, float] | None = None, bins: int = 30
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
    body = [_frame(scale_x, scale_y, x, "rows")]
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
    return _legend(list(values)) + _svg("".join(body), f"rows over {x}")


def _counts(series: Sequence[float], low: float, width: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in series:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return counts


def interval_chart(intervals: Sequence[Interval]) -> str:
    """A forest plot: estimate, confidence bounds and threshold of each rule, one a line."""
    if not intervals:
        return '<p class="note">No comparison was made.</p>'
    row, label_width = 46, 420
    ends = [v for i in intervals for v in (i.lower, i.upper, i.threshold, 0.0) if math.isfinite(v)]
    pad = (max(ends) - min(ends)) * 0.08 or 0.1
    height = row * len(intervals) + 34
    scale = _Scale(min(ends) - pad, max(ends) + pad, label_width, _WIDTH - _RIGHT)
    body = []
    for value in _ticks(scale.low, scale.high, 6):
        body.append(f'<line class="axis" x1="{scale(value)}" x2="{scale(value)}" y1="4" y2="{height - 24}"/>')
        body.append(f'<text x="{scale(value)}" y="{height - 8}" text-anchor="middle">{value:+g}</text>')
    for i, item in enumerate(intervals):
        y, colour = 24 + i * row, _TONES.get(item.decision, _COLOURS[0])
        body.append(f'<text class="ink" x="4" y="{y - 2}">{escape(item.label)}</text>')
        body.append(
            f'<text x="4" y="{y + 13}">{escape(item.decision)}: {item.estimate:+.3f} '
            f"[{item.lower:+.3f}, {item.upper:+.3f}], threshold {item.threshold:+.3f}</text>"
        )
        left = scale(max(item.lower, scale.low))
        right = scale(min(item.upper, scale.high))
        body.append(f'<line stroke="{colour}" stroke-width="3" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        body.append(f'<circle cx="{scale(item.estimate)}" cy="{y}" r="5" fill="{colour}"/>')
        at = scale(item.threshold)
        body.append(
            f'<line stroke="#b3261e" stroke-width="2" stroke-dasharray="4 3" x1="{at}" x2="{at}" '
            f'y1="{y - 15}" y2="{y + 15}"/>'
        )
    return _svg("".join(body), "estimates with confidence bounds and thresholds", height)
