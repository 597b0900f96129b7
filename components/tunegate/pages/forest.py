"""Forest plots: a bar from bound to bound for each rule, beside the threshold it is held against.

Text is HTML and only the bars are SVG, in shares of the width: so it reads as well on a phone as on a wide screen.
Numbers are rounded: equal data gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunegate.pages.charts import ticks
from tunegate.pages.parts import badge, escape

_TONES = {"PASS": "#1f7a4d", "FAIL": "#b3261e", "INCONCLUSIVE": "#b07a10"}
_THRESHOLD = "#b3261e"


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds and the threshold it is held against."""

    label: str
    estimate: float
    lower: float
    upper: float
    threshold: float
    decision: str


def forest_plot(intervals: Sequence[Interval]) -> str:
    """Estimate, confidence bounds and threshold of each rule, on one scale."""
    if not intervals:
        return '<p class="note">No comparison was made.</p>'
    ends = [v for i in intervals for v in (i.lower, i.upper, i.threshold, 0.0) if math.isfinite(v)]
    pad = (max(ends) - min(ends)) * 0.06 or 0.1
    low, high = min(ends) - pad, max(ends) + pad
    marks = ticks(low, high, 5)

    def at(value: float) -> str:
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{round(100 * share, 2):g}%"

    grid = "".join(f'<line class="axis" x1="{at(v)}" x2="{at(v)}" y1="0" y2="30"/>' for v in marks)
    rows = "".join(_row(item, grid, at) for item in intervals)
    axis = "".join(f'<text x="{at(v)}" y="13" text-anchor="middle">{v:+g}</text>' for v in marks)
    described = 'role="img" aria-label="scale"'
    return f'<div class="forest">{rows}<svg width="100%" height="18" {described}>{axis}</svg></div>'


def _row(item: Interval, grid: str, at: Callable[[float], str]) -> str:
    colour = _TONES.get(item.decision, "#2f6fbb")
    told = f"{item.estimate:+.3f} [{item.lower:+.3f}, {item.upper:+.3f}], asked {item.threshold:+.3f}"
    bar = (
        f'<line stroke="{_THRESHOLD}" stroke-width="2" stroke-dasharray="4 3" x1="{at(item.threshold)}" '
        f'x2="{at(item.threshold)}" y1="1" y2="29"/>'
        f'<line stroke="{colour}" stroke-width="3" x1="{at(item.lower)}" x2="{at(item.upper)}" y1="15" y2="15"/>'
        f'<circle cx="{at(item.estimate)}" cy="15" r="5" fill="{colour}"/>'
    )
    head = f"<p>{badge(item.decision)} {escape(item.label)} <small>{escape(told)}</small></p>"
    described = f'role="img" aria-label="{escape(told)}"'
    return f'{head}<svg width="100%" height="30" {described}>{grid}{bar}</svg>'
