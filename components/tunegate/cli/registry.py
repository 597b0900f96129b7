"""``tunegate registry``: versions and aliases."""

from __future__ import annotations

import dataclasses

import typer

from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows
from tunegate.contracts.errors import InputError

commands = typer.Typer(no_args_is_help=True, help="Versions and aliases of a registry.")


@commands.command("list")
def registry_list(registry: RegistryArgument, as_json: JsonOption = False) -> None:
    """Every alias with the version it points at."""
    with errors_shown():
        from tunegate.registry.aliases import current, list_aliases
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        records = [record for name in list_aliases(storage) if (record := current(storage, name))]
        rows = [{"alias": r.alias, "version": r.version, "action": r.action, "created": r.created} for r in records]
        print_rows(rows, as_json, nothing=f"no alias in {registry}")


@commands.command("show")
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


@commands.command("history")
def registry_history(registry: RegistryArgument, alias: AliasArgument, as_json: JsonOption = False) -> None:
    """Every move of an alias, newest first."""
    with errors_shown():
        from tunegate.registry.aliases import history
        from tunegate.storage.open import open_storage

        rows = [dataclasses.asdict(record) for record in history(open_storage(registry), alias)]
        shown = ("created", "action", "version", "note")
        told = rows if as_json else [{name: row[name] for name in shown} for row in rows]
        print_rows(told, as_json, nothing=f"{alias} never moved in {registry}")
