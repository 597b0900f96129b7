"""YAML with a comment above each value, for a person to read and change."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tunegate_pipelines.yaml_file import parse_yaml

_WIDTH, _STEP = 110, "  "


@dataclass(frozen=True)
class Entry:
    """A setting: its value, and what a person needs to know of it.

    Attributes:
        key: its name; empty for an entry of a list.
        value: plain data; or entries, of a mapping or of a list.
        why: what the value means and when to change it.
        off: whether it is written as a comment: what could be set.
    """

    key: str
    value: Any
    why: str = ""
    off: bool = False


def comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment; an empty line in ``text`` begins a new paragraph, and two spaces keep a line as it is."""
    readable = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    lines = []
    for paragraph in readable.split("\n"):
        whole = paragraph.startswith(_STEP) or not paragraph
        parts = [paragraph] if whole else textwrap.wrap(paragraph, _WIDTH - len(indent), break_on_hyphens=False)
        lines += [f"{indent}# {part}".rstrip() for part in parts]
    return lines


def commented(entries: Sequence[Entry], indent: str = "") -> list[str]:
    """Lines of YAML, each entry below its comment."""
    lines: list[str] = []
    for entry in entries:
        above = comment(entry.why, indent) if entry.why else []
        if lines and (above or not indent):
            lines.append("")
        lines += [*above, *_entry(entry, indent)]
    return lines


def _entry(entry: Entry, indent: str) -> list[str]:
    mark = f"{entry.key}:" if entry.key else "-"
    nested = isinstance(entry.value, list | tuple) and bool(entry.value) and isinstance(entry.value[0], Entry)
    if nested:
        return [f"{indent}{mark}", *commented(entry.value, indent + _STEP)]
    return [f"{indent}{'# ' if entry.off else ''}{mark} {plain(entry.value)}"]


def plain(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))
    line = str(text).removesuffix("\n").removesuffix("\n...")
    whole = "\n" not in line and parse_yaml(line, where="a value") == value  # recipes know more numbers than PyYAML
    return line if whole else json.dumps(value, ensure_ascii=False)  # JSON is YAML
