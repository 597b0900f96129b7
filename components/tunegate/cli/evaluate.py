"""``tunegate evaluate``: tasks asked of one model, before there is a pipeline."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json, print_rows

commands = typer.Typer()


@commands.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model's folder, or org/name@revision.", show_default=False)],
    task: Annotated[
        list[str], typer.Option(help="A task file (tasks/mine.yaml) or a task's name. Repeatable.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    dataset: Annotated[
        Path | None, typer.Option(help="What prepare wrote: to look for train rows among a task's.", show_default=False)
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="A vLLM server that serves the model under its content digest.", show_default=False)
    ] = "",
    api_key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds its key.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(help="Only the first rows of each task; 0: all.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Ask one model some tasks: a first look at a task of your own."""
    with errors_shown():
        from tunegate.contracts.launch import PAGE_NAME, read_summary
        from tunegate.contracts.settings import parse_settings
        from tunegate.evaluate.launcher import api_key
        from tunegate.evaluate.settings import EvaluateSettings
        from tunegate.evaluate.step import run
        from tunegate.models.files import resolve_model

        given = {"tasks": task, "limit": limit, "backend": "openai" if base_url else "transformers"}
        given |= {"base_url": base_url, "api_key_variable": api_key_variable}
        settings = parse_settings(EvaluateSettings, given, where="evaluate")
        with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
            folder, key = resolve_model(model), api_key(settings)
            run(settings, model=folder, dataset=dataset, output=output, api_key=key)
        summary = read_summary(output)
        if as_json:
            print_json({"output": str(output), **summary})
        else:
            print_rows([{"name": name, "value": value} for name, value in summary.items()], False)
            Console().print(Text(f"page  {output / PAGE_NAME}"), soft_wrap=True)
