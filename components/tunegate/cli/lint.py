"""``tunegate lint``: a recipe, or whether vLLM loads an adapter, checked without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.cli.arguments import JsonOption, SetOption
from tunegate.cli.shown import errors_shown, print_json, print_linted
from tunegate.contracts.errors import InputError
from tunegate.contracts.vllm import DEFAULT_SERVED_RANK, VLLM

commands = typer.Typer()


@commands.command()
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
