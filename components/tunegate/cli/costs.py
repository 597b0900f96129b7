"""``tunegate costs``: what a server costs under a stated load."""

from __future__ import annotations

import secrets
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json, print_rows

commands = typer.Typer(no_args_is_help=True, help="What a server costs under a stated load.")

_SEEDS = 2**31


@commands.command()
def measure(
    url: Annotated[str, typer.Argument(help="A vLLM server, as http://127.0.0.1:8000.", show_default=False)],
    model: Annotated[
        list[str], typer.Option(help="The name to ask for. Repeatable: then one after the other.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The file that gets the measurement (JSON).", show_default=False)],
    rate: Annotated[float, typer.Option(help="Requests a second, as users come: at random moments.")] = 0.0,
    at_once: Annotated[int, typer.Option(help="In place of a rate: so many under way at all times.")] = 0,
    requests: Annotated[int, typer.Option(help="How many are counted.")] = 100,
    prompt_tokens: Annotated[int, typer.Option(help="The length of each prompt.")] = 128,
    answer_tokens: Annotated[int, typer.Option(help="The length of each answer.")] = 64,
    warm_up: Annotated[int, typer.Option(help="Requests to each model that come first and are not counted.")] = 2,
    seed: Annotated[
        int | None, typer.Option(help="Of prompts and moments; another one each time otherwise.", show_default=False)
    ] = None,
    label: Annotated[
        str, typer.Option(help="What it is called on a page; the output's name otherwise.", show_default=False)
    ] = "",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer's folder, where the server's is elsewhere.", show_default=False)
    ] = None,
    pid: Annotated[
        int, typer.Option(help="The server's first process: its memory is measured.", show_default=False)
    ] = 0,
    python: Annotated[str, typer.Option(help="The Python that holds vLLM, whose load generator asks.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput and memory of a running server under a load."""
    with errors_shown():
        from tunegate.contracts.settings import parse_settings
        from tunegate.costs.measure import measure as measured
        from tunegate.costs.measurement import METRICS, write_measurement
        from tunegate.costs.settings import Load
        from tunegate.serving.environment import find_environment

        given = {"rate": rate, "at_once": at_once, "requests": requests, "prompt_tokens": prompt_tokens}
        given |= {"answer_tokens": answer_tokens, "warm_up": warm_up}
        given |= {"seed": secrets.randbelow(_SEEDS) if seed is None else seed}
        load = parse_settings(Load, given, where="load")
        where = find_environment(python)
        with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
            found = measured(
                load, url=url, models=model, label=label or output.stem, where=where, tokenizer=tokenizer, pid=pid
            )
        write_measurement(found, output)
        if as_json:
            print_json({"output": str(output), **found.summary()})
            return
        rows = [
            {"ms": what, "p50": f"{spread.p50:.1f}", "p95": f"{spread.p95:.1f}", "p99": f"{spread.p99:.1f}"}
            for what, spread in ((METRICS[name], found.latency[name]) for name in METRICS)
        ]
        print_rows(rows, False)
        facts: dict[str, object] = {"answered": found.completed, "failed": found.failed}
        facts |= {"requests/s": f"{found.requests_per_second:.2f}", "tokens/s": f"{found.answer_tokens_per_second:.1f}"}
        facts |= {"memory": "not measured" if found.memory_bytes is None else f"{found.memory_bytes / 1e6:.0f} MB"}
        print_rows([facts], False)
        Console().print(Text(f"written to {output}; see it: tunegate costs page {output}"), soft_wrap=True)


@commands.command()
def page(
    measurement: Annotated[
        list[Path], typer.Argument(help="What costs measure wrote; ratios are to the first.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("costs.html"),
    as_json: JsonOption = False,
) -> None:
    """Set measurements side by side on one page."""
    with errors_shown():
        from tunegate.contracts.errors import InputError
        from tunegate.contracts.files import write_atomically
        from tunegate.costs.measurement import read_measurement
        from tunegate.costs.page import costs_page, labels_twice, load_note

        found = [read_measurement(path) for path in measurement]
        if same := labels_twice(found):
            raise InputError(
                "Measurements have the same name.",
                seen=", ".join(same),
                expected="a name for each",
                remedy="measure again with another --label",
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, costs_page(found).encode())
        if as_json:
            print_json({"output": str(output), "measurements": [one.summary() for one in found]})
        else:
            Console().print(Text(f"{load_note(found)}\npage  {output}"), soft_wrap=True)
