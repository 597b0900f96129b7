"""``tunegate compile``: the document that a KFP cluster takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.shown import errors_shown

commands = typer.Typer()


@commands.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("finetune.yaml"),
    image_prefix: Annotated[str, typer.Option(help="Put before each image's name.")] = "",
) -> None:
    """Compile the pipeline to the YAML document that a KFP cluster takes."""
    with errors_shown():
        from tunegate_pipelines.compile import compile_finetune

        Console().print(Text(str(compile_finetune(output, image_prefix=image_prefix))), soft_wrap=True)
