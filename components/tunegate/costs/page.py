"""The costs page: several measurements side by side, and what each request saw in the order of time."""

from __future__ import annotations

from collections.abc import Sequence

from tunegate.costs.measurement import METRICS, PERCENTILES, Measurement
from tunegate.costs.phases import phases
from tunegate.costs.settings import told
from tunegate.pages.charts import line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import paragraph, table

_MEMORY = (
    "Memory is that of the server's processes after the load, on the host: what several processes share counts in "
    "parts (PSS). Memory of a GPU is not in it."
)
_SHARES = "Of all answered requests the share whose first token had come by then: the further to the left, the better."
_TIME = (
    "Each answered request at the moment it was sent, and the longest time that a reader of its answer waited for a "
    "next token, at the moment that token came."
)

#: Metrics with one value a request; fewer requests than these have no p99 to speak of.
_ONE_A_REQUEST, _MANY = ("ttft", "tpot", "e2el"), 100


def costs_page(measurements: Sequence[Measurement]) -> str:
    """One or more measurements; ratios are to the first."""
    sections = [_compared(measurements)]
    sections += [_spreads(metric, measurements) for metric in METRICS]
    shares = {one.label: _shares(one) for one in measurements}
    sections.append(Section("First tokens", line_chart(shares, x="ms to the first token", y="% of requests"), _SHARES))
    sections += [_over_time(one) for one in measurements]
    sections.append(_where(measurements))
    return page("What serving costs", sections, subtitle=" · ".join(one.label for one in measurements))


def load_note(measurements: Sequence[Measurement]) -> str:
    """The load; a warning where there are several, for then nothing can be compared."""
    loads = list(dict.fromkeys(told(one.load) for one in measurements))
    if len(loads) == 1:
        return f"The load of each: {loads[0]}."
    return f"The loads differ, so the figures say little of each other: {'; '.join(loads)}."


def labels_twice(measurements: Sequence[Measurement]) -> list[str]:
    """Labels that more than one measurement has."""
    labels = [one.label for one in measurements]
    return sorted({label for label in labels if labels.count(label) > 1})


def _compared(measurements: Sequence[Measurement]) -> Section:
    first = measurements[0]
    rows: list[list[object]] = []
    for one in measurements:
        memory = "not measured" if one.memory_bytes is None else one.memory_bytes / 1e6
        row: list[object] = [one.label, one.completed, one.failed, one.requests_per_second]
        row += [one.answer_tokens_per_second, ratio(one.answer_tokens_per_second, first.answer_tokens_per_second)]
        rows.append([*row, memory, ratio(one.memory_bytes, first.memory_bytes)])
    columns = ["", "answered", "failed", "requests/s", "answer tokens/s", "×", "memory, MB", "×"]
    return Section("Throughput and memory", table(columns, rows), f"{load_note(measurements)} {_MEMORY}")


def ratio(value: float | None, to: float | None) -> object:
    """A value against the first one's; nothing where one of them is missing."""
    return round(value / to, 2) if value is not None and to else "—"


def _spreads(metric: str, measurements: Sequence[Measurement]) -> Section:
    first = measurements[0].latency[metric]
    rows: list[list[object]] = []
    for one in measurements:
        spread = one.latency[metric]
        row: list[object] = [one.label]
        for name in ("mean", *(f"p{percent}" for percent in PERCENTILES)):
            value = getattr(spread, name)
            row += [_rounded(value), ratio(value, getattr(first, name))]
        rows.append(row)
    columns = ["", "mean, ms", "×"] + [word for percent in PERCENTILES for word in (f"p{percent}, ms", "×")]
    few = min(one.completed for one in measurements)
    note = f"Of {few} requests p99 is all but the slowest one." if metric in _ONE_A_REQUEST and few < _MANY else ""
    return Section(METRICS[metric].capitalize(), table(columns, rows, caption=f"× {measurements[0].label}"), note)


def _shares(measurement: Measurement) -> list[tuple[float, float]]:
    times = sorted(one.first_token_ms for one in measurement.asked if not one.error)
    return [(time, round(100 * (place + 1) / len(times), 2)) for place, time in enumerate(times)]


def _over_time(measurement: Measurement) -> Section:
    answered = [one for one in measurement.asked if not one.error]
    first = [(one.at_seconds, one.first_token_ms) for one in answered]
    gaps = [_longest_gap(one.at_seconds, one.first_token_ms, one.gaps_ms) for one in answered if one.gaps_ms]
    series = {"to the first token": first, "longest gap between two tokens": gaps}
    body = line_chart(series, x="seconds", y="ms", marks=measurement.marks, joined=False)
    if measurement.marks:
        rows = [
            [
                phase.name,
                phase.requests,
                phase.failed,
                *map(_rounded, phase.first_token_ms),
                *map(_rounded, phase.gap_ms),
            ]
            for phase in phases(measurement)
        ]
        columns = ["", "requests", "failed", "first token p50", "p95", "longest", "gap p50", "p95", "longest"]
        body += table(columns, rows, caption="ms")
    return Section(f"In the order of time: {measurement.label}", body, _TIME)


def _longest_gap(at_seconds: float, first_token_ms: float, gaps_ms: Sequence[float]) -> tuple[float, float]:
    longest = max(gaps_ms)
    place = gaps_ms.index(longest) + 1
    return round(at_seconds + (first_token_ms + sum(gaps_ms[:place])) / 1000, 3), longest


def _where(measurements: Sequence[Measurement]) -> Section:
    rows = []
    for one in measurements:
        machine = one.machine
        quiet = f"{machine.load_before:.2f} → {machine.load_after:.2f}"
        names = ", ".join(model.name if len(model.name) < 40 else model.name[:12] for model in one.models)
        rows.append([one.label, one.url, names, f"{machine.cpus} × {machine.processor}", quiet, one.measured_at])
    columns = ["", "address", "asked", "processors", "load average", "when (UTC)"]
    body = table(columns, rows) + paragraph(
        f"The load was made by: {', '.join(sorted({o.generator for o in measurements}))}."
    )
    note = "Processors and load are of the machine that asked; a load above 0 before says that something else worked."
    return Section("Where it was measured", body, note)


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 1)
