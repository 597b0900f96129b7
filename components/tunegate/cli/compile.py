"""``tunegate compile``: the document that a KFP cluster takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json
from tunegate.contracts.errors import InputError

commands = typer.Typer()


@commands.command("compile")
def compile_(
    output: Annotated[
        Path | None, typer.Option(help="The file to write; PIPELINE.yaml otherwise.", show_default=False)
    ] = None,
    image_prefix: Annotated[str, typer.Option(help="Put before each image's name.")] = "",
    image_digests: Annotated[
        Path | None,
        typer.Option(help="What images/build.sh wrote: images are named by digest, not by tag.", show_default=False),
    ] = None,
    pipeline: Annotated[str, typer.Option(help="finetune, approve or promote.")] = "finetune",
    as_json: JsonOption = False,
) -> None:
    """Compile a pipeline to the YAML document that a KFP cluster takes."""
    with errors_shown():
        from tunegate_pipelines.compile import PIPELINES, compile_pipeline
        from tunegate_pipelines.image_digests import read_digests

        if pipeline not in PIPELINES:
            raise InputError(
                f"There is no pipeline {pipeline!r}.",
                seen=repr(pipeline),
                expected=f"one of {', '.join(PIPELINES)}",
                remedy="choose one of them",
            )
        digests = read_digests(image_digests) if image_digests else None
        path = output or Path(f"{pipeline}.yaml")
        written = compile_pipeline(pipeline, path, image_prefix=image_prefix, digests=digests)
        if as_json:
            print_json({"pipeline": pipeline, "written": str(written)})
        else:
            Console().print(Text(str(written)), soft_wrap=True)
