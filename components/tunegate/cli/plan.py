"""``tunegate plan``: what training would hold in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunegate.cli.arguments import JsonOption, SetOption
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer()


@commands.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; without one, --model is needed.")] = None,
    set_: SetOption = [],  # noqa: B006
    model: Annotated[
        str | None, typer.Option(help="A model's folder, its config.json, or a known one: llama-3-8b, …")
    ] = None,
    method: Annotated[str | None, typer.Option(help="lora, qlora, adalora or full.")] = None,
    r: Annotated[int | None, typer.Option("--r", help="Rank of the adapter.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of one forward pass.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of the longest row.")] = None,
    gpu: Annotated[str | None, typer.Option(help="A GPU that it should fit: L4, A100-80GB, H200, …")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page with a picture to this new file as well.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what training would hold in memory, which GPU fits, and what to change when none does."""
    with errors_shown():
        from tunegate_pipelines.plan import answer
        from tunegate_pipelines.plan_report import show, write_page

        given = {"method": method, "r": r, "max_length": length, "train.per_device_train_batch_size": batch}
        laid_over = [f"{name}={value}" for name, value in given.items() if value is not None]
        found = answer(recipe, [*set_, *laid_over], model=model, gpu=gpu)
        if page is not None:
            write_page(found, page)
        if as_json:
            print_json(found.to_json())
        else:
            show(found, Console())
