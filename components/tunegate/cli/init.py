"""``tunegate init``: a first recipe, with its policy and a task, for one's own data."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json, print_linted

if TYPE_CHECKING:
    from tunegate_pipelines.init.write import Written

commands = typer.Typer()


@commands.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where recipe and task are written.", show_default=False)
    ],
    base_model: Annotated[
        str,
        typer.Option(help="The model to tune: a folder, org/name@commit of a hub, or demo.", show_default=False),
    ],
    data: Annotated[
        str, typer.Option(help="The rows: a .jsonl or .parquet file, or a folder of such.", show_default=False)
    ],
    alias: Annotated[str, typer.Option(help="The alias that moves to what is promoted.")] = "champion",
    registry: Annotated[
        str,
        typer.Option(help="Where versions are kept, a folder or gs://; DIR/registry otherwise.", show_default=False),
    ] = "",
    serving_target: Annotated[
        str,
        typer.Option(help="What will serve it, as vllm-cuda-sm90; this machine otherwise.", show_default=False),
    ] = "",
    serve_check: Annotated[
        bool | None,
        typer.Option(
            "--serve-check/--no-serve-check",
            help="Whether a run asks vLLM before the gate; otherwise where this machine has one.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe, its policy and a task for your own model and data; nothing is overwritten."""
    with errors_shown():
        from tunegate_pipelines.init.write import write_first_recipe

        with redirect_stdout(sys.stderr):  # progress is no part of the answer
            written = write_first_recipe(
                folder,
                base_model=base_model,
                data=data,
                alias=alias,
                registry=registry,
                serving_target=serving_target,
                serve_check=serve_check,
            )
        if as_json:
            print_json(written.to_json())
        else:
            _show(written)


def _show(written: Written) -> None:
    plan, console = written.plan, Console()
    observed, chosen, judged = plan.observed, plan.chosen, plan.judged
    sides = ", ".join(f"{len(chosen.of(side))} {side}" for side in ("train", "validation", "evaluation"))
    answers = f"{len(observed.labels)} labels" if observed.labels else observed.kind.replace("_", " ")
    measure = "margin of {:g} nats a token" if judged.likelihood else "margin of {:.0%}"
    told = {
        "rows": f"{observed.read} of the format {observed.format}: {sides}; {chosen.dropped} repeat others",
        "answers": f"{answers}, scored by {judged.task}.{judged.metric} on {judged.rows} rows never trained on",
        "policy": f"the quantized model may lose a {measure.format(judged.margin)}: what these rows can show",
        "served": f"on {plan.serving_target}" + (", checked before the gate" if plan.serve_check else ", not checked"),
    }
    for name, text in [*told.items(), *(("note", note) for note in written.notes)]:
        console.print(Text(f"{name:<10}{text}"), soft_wrap=True)
    for path in written.files:
        console.print(Text(f"{'written':<10}{path}"), soft_wrap=True)
    print_linted(written.linted, nothing="lint      nothing to say: this recipe can run")
    recipe = plan.places.recipe
    console.print(
        Text(f"{'next':<10}read {recipe}, then: tunegate run {recipe} --output {plan.places.run}"), soft_wrap=True
    )
