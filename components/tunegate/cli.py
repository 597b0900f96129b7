"""The command ``tunegate``. Exit codes: 0 done, 1 a failed run, 2 bad input, 3 a gate that said no, 75 try again."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunegate.contracts.errors import GateRefused, InputError, TunegateError
from tunegate.contracts.vllm import DEFAULT_SERVED_RANK, VLLM
from tunegate.preflight.lint import Linted

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
registry_app = typer.Typer(no_args_is_help=True, help="Versions and aliases of a registry.")
app.add_typer(registry_app, name="registry")

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
SetOption = Annotated[
    list[str], typer.Option("--set", help="NAME=VALUE of the run form, or STEP.NAME=VALUE. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
RegistryArgument = Annotated[str, typer.Argument(help="The registry: a folder or URI.", show_default=False)]
AliasArgument = Annotated[str, typer.Argument(help="The alias.", show_default=False)]


@contextmanager
def errors_shown() -> Iterator[None]:
    """The one place where an error becomes a message on standard error and an exit code."""
    try:
        yield
    except TunegateError as error:
        first, *rest = str(error).split("\n")
        console = Console(stderr=True)
        console.print(Text(first, "yellow" if isinstance(error, GateRefused) else "red"), soft_wrap=True)
        console.print(Text("\n".join(rest)), soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[
        Path | None,
        typer.Option(help="A new folder, or that of the same recipe interrupted; runs/NAME-OF-THE-RECIPE otherwise."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on this machine, and promote on PASS."""
    console = Console(file=sys.stderr if as_json else sys.stdout)  # bound now: the run redirects what is printed later
    with errors_shown():
        from tunegate_pipelines.local import run_local
        from tunegate_pipelines.recipe import read_recipe
        from tunegate_pipelines.report import finally_reported, read_report, show
        from tunegate_pipelines.unfinished import folder_for, goes_on

        read = read_recipe(recipe, set_)
        folder = output or folder_for(Path("runs"), recipe.stem, read)
        earlier = folder.exists() and not goes_on(folder, read)  # then the run is refused: another run lies there

        def report() -> None:
            if not earlier:
                found = read_report(folder)
                show(found, folder, console)
                if as_json:
                    print_json(found.to_json())

        with finally_reported(report, console):
            run_local(read, folder, console)


@app.command()
def lint(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; or give --adapter.", show_default=False)] = None,
    set_: SetOption = [],  # noqa: B006
    adapter: Annotated[
        Path | None, typer.Option(help="An adapter's folder: will vLLM load it?", show_default=False)
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The folder of the model that the adapter is served on.", show_default=False)
    ] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option(help=f"vLLM's --max-lora-rank, {DEFAULT_SERVED_RANK} otherwise.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe, or whether vLLM loads an adapter, without running anything."""
    with errors_shown():
        if (recipe is None) == (adapter is None):
            raise InputError(
                "One thing is checked at a time.",
                seen="neither a recipe nor an adapter" if recipe is None else "a recipe and an adapter",
                expected="a recipe, or --adapter with its folder",
                remedy="tunegate lint RECIPE, or tunegate lint --adapter FOLDER",
            )
        if adapter is not None:
            _refuse_other_options("lint --adapter", {"--set": set_})
            _lint_adapter(adapter, base, max_lora_rank, as_json)
        elif recipe is not None:
            _refuse_other_options("lint RECIPE", {"--base": base, "--max-lora-rank": max_lora_rank})
            _lint_recipe(recipe, set_, as_json)


def _lint_recipe(recipe: Path, overrides: list[str], as_json: bool) -> None:
    from tunegate.preflight.lint import refuse
    from tunegate_pipelines.local import check_recipe
    from tunegate_pipelines.recipe import read_recipe

    linted = check_recipe(read_recipe(recipe, overrides))
    if as_json:
        print_json(linted.to_json())
    else:
        print_linted(linted, nothing="nothing to say: this recipe can run")
    refuse(linted)


def _lint_adapter(adapter: Path, base: Path | None, max_lora_rank: int | None, as_json: bool) -> None:
    from tunegate.preflight.vllm_adapter import lint_adapter, refuse_adapter

    room = DEFAULT_SERVED_RANK if max_lora_rank is None else max_lora_rank
    verdict = lint_adapter(adapter, base=base, max_lora_rank=room)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_linted(verdict.linted, nothing=f"{VLLM} loads this adapter with --max-lora-rank {room}")
    refuse_adapter(adapter, verdict)


def _refuse_other_options(command: str, options: Mapping[str, Any]) -> None:
    """Raises InputError for an option that this form of a command would not look at."""
    if given := [name for name, value in options.items() if value is not None and value != []]:
        raise InputError(
            f"tunegate {command} takes no {' and no '.join(given)}.",
            seen=", ".join(given),
            expected="options of what is checked",
            remedy=f"leave {' and '.join(given)} out",
        )


@app.command()
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


@app.command()
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


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("finetune.yaml"),
    image_prefix: Annotated[str, typer.Option(help="Put before each image's name.")] = "",
) -> None:
    """Compile the pipeline to the YAML document that a KFP cluster takes."""
    with errors_shown():
        from tunegate_pipelines.compile import compile_finetune

        Console().print(Text(str(compile_finetune(output, image_prefix=image_prefix))), soft_wrap=True)


@registry_app.command("list")
def registry_list(registry: RegistryArgument, as_json: JsonOption = False) -> None:
    """Every alias with the version it points at."""
    with errors_shown():
        from tunegate.registry.aliases import current, list_aliases
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        records = [record for name in list_aliases(storage) if (record := current(storage, name))]
        rows = [{"alias": r.alias, "version": r.version, "action": r.action, "created": r.created} for r in records]
        print_rows(rows, as_json, nothing=f"no alias in {registry}")


@registry_app.command("show")
def registry_show(registry: RegistryArgument, alias: AliasArgument, as_json: JsonOption = False) -> None:
    """Where an alias points, and why."""
    with errors_shown():
        from tunegate.registry.aliases import current
        from tunegate.storage.open import open_storage

        record = current(open_storage(registry), alias)
        if record is None:
            raise InputError(
                f"There is no alias {alias!r} in {registry}.",
                seen="no such alias",
                expected="an alias that something was promoted to",
                remedy=f"tunegate registry list {registry}",
            )
        document = dataclasses.asdict(record)
        if as_json:
            print_json(document)
        else:
            print_rows([{"name": name, "value": value} for name, value in document.items() if value], False)


@registry_app.command("history")
def registry_history(registry: RegistryArgument, alias: AliasArgument, as_json: JsonOption = False) -> None:
    """Every move of an alias, newest first."""
    with errors_shown():
        from tunegate.registry.aliases import history
        from tunegate.storage.open import open_storage

        rows = [dataclasses.asdict(record) for record in history(open_storage(registry), alias)]
        shown = ("created", "action", "version", "note")
        told = rows if as_json else [{name: row[name] for name in shown} for row in rows]
        print_rows(told, as_json, nothing=f"{alias} never moved in {registry}")


@app.command()
def rollback(
    registry: RegistryArgument,
    alias: AliasArgument,
    note: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Point an alias at the version it pointed at before."""
    with errors_shown():
        from tunegate.registry.aliases import read_alias
        from tunegate.registry.aliases import rollback as go_back
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        record = go_back(storage, read_alias(storage, alias), note=note).record
        if as_json:
            print_json(dataclasses.asdict(record))
        else:
            Console().print(Text(f"{alias} points at {record.version} again"), soft_wrap=True)


def print_json(document: Any) -> None:
    """One document for a script."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_linted(linted: Linted, *, nothing: str) -> None:
    """Findings for a person, each with what to do, and the rules that could not be checked.

    Args:
        nothing: what is said when there is no finding.
    """
    console = Console()
    for finding in linted.findings:
        tone = "red" if finding.severity == "error" else "yellow"
        console.print(Text.assemble((finding.severity, tone), f" {finding.rule}"))
        for name, told in (("seen", finding.seen), ("to do", finding.remedy), ("see", finding.reference)):
            console.print(Text(f"  {name + ':':<7}{told}"), soft_wrap=True)
    if not linted.findings:
        console.print(Text(nothing), soft_wrap=True)
    for unchecked in linted.unchecked:
        console.print(Text(f"not checked: {unchecked.rule} ({unchecked.reason})", "dim"), soft_wrap=True)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, *, nothing: str = "") -> None:
    """Rows as a table for a person, or as JSON for a script."""
    console = Console()
    if as_json:
        print_json(list(rows))
    elif not rows:
        console.print(Text(nothing), soft_wrap=True)
    else:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            drawn.add_column(name, overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(str(value)) for value in row.values()))
        console.print(drawn)
