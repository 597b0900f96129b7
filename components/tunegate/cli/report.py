"""``tunegate report``: what came of a local run, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json
from tunegate.contracts.errors import InputError

commands = typer.Typer()


@commands.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, as runs/demo.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Show a run's table, verdict and promotion again, from what it left in its folder; nothing is written."""
    with errors_shown():
        from tunegate_pipelines.report import read_report, show

        found = read_report(folder)
        if not found.artifacts:
            raise InputError(
                f"There is no run to report in {folder}.",
                seen="no finished artifact in it" if folder.is_dir() else "no such folder",
                expected="the folder of a run that finished at least one step",
                remedy="name the folder that tunegate run was given as --output, or runs/NAME-OF-THE-RECIPE",
            )
        if as_json:
            print_json(found.to_json())
        else:
            show(found, folder, Console())
