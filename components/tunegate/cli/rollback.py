"""``tunegate rollback``: an alias back to where it pointed before."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer()


@commands.command()
def rollback(
    registry: RegistryArgument,
    alias: AliasArgument,
    note: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Point an alias at the version it pointed at before."""
    with errors_shown():
        from tunegate.registry.aliases import read_alias
        from tunegate.registry.aliases import rollback as go_back
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        record = go_back(storage, read_alias(storage, alias), note=note).record
        if as_json:
            print_json(dataclasses.asdict(record))
        else:
            Console().print(Text(f"{alias} points at {record.version} again"), soft_wrap=True)
