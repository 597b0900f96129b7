"""``tunegate schedule``: recurring runs on a KFP cluster, as a file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunegate.cli.arguments import ClusterOption, JsonOption
from tunegate.cli.shown import errors_shown, print_rows

commands = typer.Typer()


@commands.command()
def schedule(
    file: Annotated[Path, typer.Argument(help="The schedule file, YAML.", show_default=False)],
    cluster: ClusterOption = Path("cluster.yaml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the recurring runs on a KFP cluster those of a file: create, change and remove what its owner has."""
    with errors_shown():
        from tunegate_pipelines.schedule import reconcile

        done = reconcile(file, cluster, dry_run=dry_run)
        rows = [{**row, "removed": ", ".join(row["removed"])} for row in done]
        print_rows(done if as_json else rows, as_json, nothing="no schedule in the file, and none on KFP of its owner")
