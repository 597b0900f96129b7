"""``tunegate compile``: the document that a KFP cluster or Vertex AI Pipelines takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption, ModelOption, SetOption
from tunegate.cli.shown import errors_shown, print_json
from tunegate.contracts.errors import InputError

commands = typer.Typer()


@commands.command("compile")
def compile_(
    output: Annotated[
        Path | None, typer.Option(help="The file to write; PIPELINE.yaml otherwise.", show_default=False)
    ] = None,
    image_prefix: Annotated[str, typer.Option(help="Put before each image's name; the cluster file's otherwise.")] = "",
    image_digests: Annotated[
        Path | None,
        typer.Option(help="What images/build.sh wrote: images are named by digest, not by tag.", show_default=False),
    ] = None,
    pipeline: Annotated[str, typer.Option(help="finetune, retrain, approve, promote or deploy.")] = "finetune",
    target: Annotated[
        str, typer.Option(help="kfp, or vertex: one document, with Vertex's names of accelerators.")
    ] = "kfp",
    cluster: Annotated[
        Path | None, typer.Option(help="A cluster file: accelerators, tolerations, secrets, …", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe, by whose memory plan steps are placed.", show_default=False)
    ] = None,
    set_: SetOption = [],  # noqa: B006
    model: ModelOption = "",
    as_json: JsonOption = False,
) -> None:
    """Compile a pipeline to the YAML document that a KFP cluster or Vertex AI Pipelines takes."""
    with errors_shown():
        from tunegate_pipelines.compile import PIPELINES, compile_pipeline
        from tunegate_pipelines.image_digests import read_digests
        from tunegate_pipelines.placement import TARGETS
        from tunegate_pipelines.targets import platform_for

        for what, given, known in (("pipeline", pipeline, PIPELINES), ("target", target, TARGETS)):
            if given not in known:
                raise InputError(
                    f"There is no {what} {given!r}.",
                    seen=repr(given),
                    expected=f"one of {', '.join(known)}",
                    remedy="choose one of them",
                )
        made = platform_for(target, cluster, recipe, set_, model)
        given_digests = image_digests or made.image_digests
        written = compile_pipeline(
            pipeline,
            output or Path(f"{pipeline}.yaml"),
            image_prefix=image_prefix or made.image_prefix,
            digests=read_digests(given_digests) if given_digests else None,
            platform=made.platform,
            check=made.refuse_secrets,
        )
        if as_json:
            print_json({"pipeline": pipeline, "written": str(written)})
        else:
            Console().print(Text(str(written)), soft_wrap=True)
