"""One template and one style for every page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from tunegate.pages.parts import escape


@dataclass(frozen=True)
class Section:
    """A heading, a body made by :mod:`tunegate.pages.parts` and :mod:`tunegate.pages.charts`, and a note below it."""

    heading: str
    body: str
    note: str = ""


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """A complete HTML document that loads nothing from anywhere."""
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""]
    for section in sections:
        parts.append(f"<section><h2>{escape(section.heading)}</h2>{section.body}")
        parts.append(f'<p class="note">{escape(section.note)}</p></section>' if section.note else "</section>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _style() -> str:
    return (resources.files("tunegate.pages") / "style.css").read_text("utf-8")
