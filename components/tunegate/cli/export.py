"""``tunegate export``: an adapter as plain LoRA of one rank."""

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
def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter's folder.", show_default=False)],
    base: Annotated[
        str, typer.Option(help="The base that it was trained on: a folder, or org/name@revision.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    rank: Annotated[
        int | None, typer.Option(help="Rank of every module; the smallest that fits otherwise.", show_default=False)
    ] = None,
    reduce_rank_to: Annotated[
        int | None, typer.Option(help="Cut to this rank, and say what that loses on --dataset.", show_default=False)
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="What prepare wrote.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an adapter plain LoRA of one rank, which vLLM and PEFT load: exactly, or cut to a smaller rank."""
    with errors_shown():
        from tunegate.contracts.launch import read_summary
        from tunegate.contracts.settings import parse_settings
        from tunegate.export.settings import ExportSettings
        from tunegate.export.step import run as run_export
        from tunegate.models.files import resolve_model

        given = {"rank": rank, "reduce_rank_to": reduce_rank_to, "dtype": dtype}
        settings = parse_settings(
            ExportSettings, {name: value for name, value in given.items() if value is not None}, where="export"
        )
        with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
            run_export(settings, base_model=resolve_model(base), adapter=adapter, output=output, dataset=dataset)
        summary = read_summary(output)
        if as_json:
            print_json({"output": str(output), **summary})
        else:
            Console().print(Text(f"{output}: serve it with --max-lora-rank {summary['rank']}"), soft_wrap=True)
            print_rows([{"name": name, "value": value} for name, value in summary.items()], False)
