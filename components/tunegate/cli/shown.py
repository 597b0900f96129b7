"""How commands answer: tables for people, JSON for scripts, errors with an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunegate.contracts.errors import GateRefused, TunegateError

if TYPE_CHECKING:
    from tunegate.preflight.lint import Linted


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


def print_linted(linted: Linted, *, nothing: str) -> None:
    """Findings for a person, each with what to do, and the rules that could not be checked.

    Args:
        nothing: what is said when there is no finding.
    """
    console = Console()
    for finding in linted.findings:
        tone = "red" if finding.severity == "error" else "yellow"
        console.print(Text.assemble((finding.severity, tone), f" {finding.rule}"))
        for name, told in (("seen", finding.seen), ("to do", finding.remedy), ("see", finding.reference)):
            console.print(Text(f"  {name + ':':<7}{told}"), soft_wrap=True)
    if not linted.findings:
        console.print(Text(nothing), soft_wrap=True)
    for unchecked in linted.unchecked:
        console.print(Text(f"not checked: {unchecked.rule} ({unchecked.reason})", "dim"), soft_wrap=True)
    for text in linted.told:
        console.print(Text(text, "dim"), soft_wrap=True)
