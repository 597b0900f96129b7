"""``tunegate registry rules``: what every approval for a registry must hold to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.cli.arguments import JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows
from tunegate.contracts.errors import SettingsError

commands = typer.Typer()


@commands.command("rules")
def registry_rules(
    registry: RegistryArgument,
    rules: Annotated[
        Path | None, typer.Option("--set", help="YAML file: write these rules; others void open requests.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The least that every approval for this registry holds to, whatever a recipe says."""
    with errors_shown():
        from tunegate.contracts.approval_minimum import parse_minimum
        from tunegate.registry.minimum import read_minimum, write_minimum
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        storage.refuse_absent()
        if rules is not None:
            write_minimum(storage, parse_minimum(_document(rules), where=str(rules)))
        minimum = read_minimum(storage)
        document = minimum.to_json() if minimum else {}
        if as_json:
            print_json(document)
        else:
            rows = [{"rule": name, "value": value} for name, value in document.items()]
            print_rows(rows, False, nothing=f"no rules in {registry}: each recipe says its own")


def _document(path: Path) -> Any:
    import yaml

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"The rules {path} cannot be read.",
            seen=f"{type(error).__name__}: {' '.join(str(error).split())}",
            expected="a YAML file",
            remedy="check the path, and indentation, quotes and colons in it",
        ) from error
    return {} if document is None else document
