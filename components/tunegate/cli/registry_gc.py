"""``tunegate registry gc``: removes versions that nothing needs."""

from __future__ import annotations

import datetime
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_rows
from tunegate.registry.collect import GRACE_DAYS, KEEP, Rules, collect

commands = typer.Typer()


@commands.command("gc")
def registry_gc(
    registry: RegistryArgument,
    keep: Annotated[int, typer.Option(min=1, help="How many records of each alias keep their versions.")] = KEEP,
    grace_days: Annotated[
        float, typer.Option(min=0.05, help="What was brought since then stays; longer than any upload takes.")
    ] = GRACE_DAYS,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; otherwise it is only said what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which versions nothing needs, and remove them with --yes."""
    with errors_shown():
        from tunegate.storage.open import open_storage

        rules = Rules(keep, datetime.timedelta(days=grace_days))
        judged = collect(open_storage(registry), rules, now=datetime.datetime.now(datetime.UTC), remove=yes)
        rows = [
            {"version": j.version, "fate": j.fate, "size_bytes": j.size_bytes, "reason": j.reason}
            for j in sorted(judged, key=lambda j: (j.fate, j.version))
        ]
        print_rows(rows, as_json, nothing=f"no version in {registry}")
        going = [judgement for judgement in judged if judgement.fate == "remove"]
        if going and not as_json:
            size = sum(judgement.size_bytes or 0 for judgement in going)
            told = f"nothing was removed; --yes removes {len(going)} versions, {size:,} bytes"
            Console(file=sys.stderr).print(Text(told), soft_wrap=True)
