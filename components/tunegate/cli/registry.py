"""``tunegate registry``: versions and aliases."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from tunegate.cli import registry_gc, registry_rules, registry_versions
from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows
from tunegate.contracts.errors import InputError

commands = typer.Typer(no_args_is_help=True, help="Versions and aliases of a registry.")
for group in (registry_versions, registry_gc, registry_rules):
    commands.add_typer(group.commands)


@commands.command("list")
def registry_list(
    registry: RegistryArgument,
    versions: Annotated[bool, typer.Option("--versions", help="Every version, with the aliases on it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every alias with the version it points at."""
    with errors_shown():
        from tunegate.registry.aliases import current, list_aliases
        from tunegate.registry.versions import list_versions, show_version
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        records = [record for name in list_aliases(storage) if (record := current(storage, name))]
        if versions:
            rows: list[dict[str, Any]] = []
            for version in list_versions(storage):
                manifest = show_version(storage, version)
                size = sum(entry.size_bytes for entry in manifest.files)
                on_it = ", ".join(record.alias for record in records if record.version == version)
                rows.append({"version": version, "size_bytes": size, "created": manifest.created, "aliases": on_it})
            print_rows(rows, as_json, nothing=f"no version in {registry}")
        else:
            rows = [{"alias": r.alias, "version": r.version, "action": r.action, "created": r.created} for r in records]
            print_rows(rows, as_json, nothing=f"no alias in {registry}")


@commands.command("show")
def registry_show(
    registry: RegistryArgument,
    name: Annotated[
        str, typer.Argument(help="An alias, or a version's digest or its first letters.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Where an alias points, and why; or what a version holds."""
    with errors_shown():
        from tunegate.registry.aliases import current, list_aliases
        from tunegate.registry.versions import find_version, list_versions, show_version
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        record = current(storage, name) if name in list_aliases(storage) else None
        if record is not None:
            document = dataclasses.asdict(record)
            shown = [{"name": key, "value": value} for key, value in document.items() if value]
        elif any(version.startswith(name) for version in list_versions(storage)):
            manifest = show_version(storage, find_version(storage, name))
            document = {"version": manifest.content_digest, **manifest.to_json()}
            shown = [
                {"part": role, "files": len(sizes), "size_bytes": sum(sizes), "content digest": digest}
                for role, digest in manifest.parents.items()
                if (sizes := [entry.size_bytes for entry in manifest.files if entry.path.startswith(f"{role}/")])
            ]
        else:
            raise InputError(
                f"There is no alias and no version {name!r} in {registry}.",
                seen="no such alias, and no version whose digest starts so",
                expected="an alias that something was promoted to, or a version",
                remedy=f"tunegate registry list {registry}, with --versions for those without an alias as well",
            )
        if as_json:
            print_json(document)
        else:
            print_rows(shown, False)


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
