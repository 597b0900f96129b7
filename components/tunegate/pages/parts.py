"""The parts of a page that are text: tables, facts, badges. Each escapes what it is given."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

#: From this length on a text in a table is prose: on a phone its row becomes a block, for columns would be slivers.
_PROSE = 40

#: Up to this length it stays on one line: a digest, a size, a name.
_WORD = 16

_TONES = {
    "PASS": "good",
    "FAIL": "bad",
    "INCONCLUSIVE": "unsure",
    "error": "bad",
    "warning": "unsure",
    "approved": "good",
    "rejected": "bad",
    "expired": "unsure",
}


def escape(value: object) -> str:
    """A value as text that cannot become markup; numbers are shortened for reading."""
    if not _is_number(value):
        return html.escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads to a page beside this one."""

    text: str
    href: str


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table; columns of numbers are set to the right, and on a phone rows with long texts become blocks."""
    numeric = {place for row in rows for place, value in enumerate(row) if _is_number(value)}
    head = "".join(
        f'<th class="number">{escape(column)}</th>' if place in numeric else f"<th>{escape(column)}</th>"
        for place, column in enumerate(columns)
    )
    body = "".join(f"<tr>{''.join(_cell(*pair) for pair in zip(columns, row, strict=True))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    long = any(isinstance(value, str) and len(value) >= _PROSE for row in rows for value in row)
    opened = '<table class="prose">' if long else "<table>"
    return f'<div class="scroll">{opened}{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: str, value: object) -> str:
    named = f' data-name="{escape(column)}"'
    if isinstance(value, Link):
        return f"<td{named}>{link(value.text, value.href)}</td>"
    if isinstance(value, str) and value in _TONES:
        return f"<td{named}>{badge(value)}</td>"
    told = escape(value)
    if _is_number(value):
        return f'<td class="number"{named}>{told}</td>'
    return f'<td class="word"{named}>{told}</td>' if len(told) <= _WORD else f"<td{named}>{told}</td>"


def folded(summary: str, body: str) -> str:
    """A part that is opened by a click: what few readers need."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def facts(values: Mapping[str, object]) -> str:
    """Named values side by side."""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{cells}</dl>'


def badge(decision: str) -> str:
    """A decision or severity as a coloured word."""
    return f'<span class="badge {_TONES.get(decision, "plain")}">{escape(decision)}</span>'


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Text set as it is, for example a model's answer."""
    return f"<pre>{escape(text)}</pre>"


def side_by_side(heading: str, told: Mapping[str, str], beside: Mapping[str, str]) -> str:
    """One thing seen by several: facts about it, then what each says, beside each other where there is room.

    Args:
        heading: what it is.
        told: name → text, for example what was asked; empty texts are left out.
        beside: who → what they say.
    """
    lines = "".join(f"<p><small>{escape(name)}</small> {escape(text)}</p>" for name, text in told.items() if text)
    said = "".join(f"<div><b>{escape(who)}</b><pre>{escape(text)}</pre></div>" for who, text in beside.items())
    return f'<div class="row"><p><b>{escape(heading)}</b></p>{lines}<div class="beside">{said}</div></div>'


def link(text: str, href: str) -> str:
    """A link to a page beside this one."""
    return f'<a href="{html.escape(href, quote=True)}">{escape(text)}</a>'
