"""``tunegate fleet``: many adapters on one base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer(no_args_is_help=True, help="Many adapters on one base.")


@commands.command()
def plan(
    fleet: Annotated[Path, typer.Argument(help="A fleet file: base, and adapters by alias.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Say what one vLLM would serve of a fleet file, or why it would not; nothing is started or written."""
    with errors_shown():
        from tunegate.preflight.fleet import plan_fleet, read_fleet

        planned = plan_fleet(read_fleet(fleet), root=fleet.parent)
        if as_json:
            print_json(planned.to_json())
            return
        lines = [f"base {planned.base}"]
        for adapter in planned.adapters:
            lines.append(f"{adapter.alias} → {adapter.digest}  rank {adapter.rank}")
            lines += [f"  not checked: {each}" for each in adapter.unchecked]
        lines.append(f"--max-loras {planned.max_loras} --max-lora-rank {planned.max_lora_rank}")
        Console().print(Text("\n".join(lines)), soft_wrap=True)
