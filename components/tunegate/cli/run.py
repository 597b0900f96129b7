"""``tunegate run``: the whole pipeline on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunegate.cli.arguments import JsonOption, RecipeArgument, SetOption
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer()


@commands.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[
        Path | None,
        typer.Option(help="A new folder, or that of the same recipe interrupted; runs/NAME-OF-THE-RECIPE otherwise."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on this machine, and promote on PASS."""
    console = Console(file=sys.stderr if as_json else sys.stdout)  # bound now: the run redirects what is printed later
    with errors_shown():
        from tunegate_pipelines.local import run_local
        from tunegate_pipelines.recipe import read_recipe
        from tunegate_pipelines.report import finally_reported, read_report, show
        from tunegate_pipelines.unfinished import folder_for, goes_on

        read = read_recipe(recipe, set_)
        folder = output or folder_for(Path("runs"), recipe.stem, read)
        earlier = folder.exists() and not goes_on(folder, read)  # then the run is refused: another run lies there

        def report() -> None:
            if not earlier:
                found = read_report(folder)
                show(found, folder, console)
                if as_json:
                    print_json(found.to_json())

        with finally_reported(report, console):
            run_local(read, folder, console)
