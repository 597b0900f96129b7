"""How commands answer: tables for people, JSON for scripts, errors with an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunegate.contracts.errors import GateRefused, TunegateError


@contextmanager
def errors_shown() -> Iterator[None]:
    """The one place where an error becomes a message on standard error and an exit code."""
    try:
        yield
    except TunegateError as error:
        first, *rest = str(error).split("\n")
        console = Console(stderr=True)
        console.print(Text(first, "yellow" if isinstance(error, GateRefused) else "red"), soft_wrap=True)
        console.print(Text("\n".join(rest)), soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


def print_json(document: Any) -> None:
    """One document for a script."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, *, nothing: str = "") -> None:
    """Rows as a table for a person, or as JSON for a script."""
    console = Console()
    if as_json:
        print_json(list(rows))
    elif not rows:
        console.print(Text(nothing), soft_wrap=True)
    else:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            drawn.add_column(name, overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(str(value)) for value in row.values()))
        console.print(drawn)
