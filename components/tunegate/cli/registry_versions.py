"""``tunegate registry verify`` and ``diff``: what a version holds, and what differs between two."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows

commands = typer.Typer()

VersionArgument = Annotated[
    str, typer.Argument(help="An alias, or a version's digest or its first letters.", show_default=False)
]


@commands.command("verify")
def registry_verify(registry: RegistryArgument, version: VersionArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a version where it lies, and name each file that is not what it should be."""
    with errors_shown():
        from tunegate.registry.named import named_version
        from tunegate.registry.versions import verify_version
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        digest = named_version(storage, version)
        files = verify_version(storage, digest).files
        size = sum(entry.size_bytes for entry in files)
        if as_json:
            print_json({"version": digest, "files": len(files) + 1, "size_bytes": size})
        else:
            Console().print(Text(f"{digest}: {len(files) + 1} files, {size:,} bytes, each as it was published"))


@commands.command("diff")
def registry_diff(
    registry: RegistryArgument, before: VersionArgument, after: VersionArgument, as_json: JsonOption = False
) -> None:
    """Settings, data and metrics that differ between two versions."""
    with errors_shown():
        from tunegate.registry.compare import compare_versions
        from tunegate.registry.named import named_version
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        found = compare_versions(storage, named_version(storage, before), named_version(storage, after))
        rows = [difference.to_json() for difference in found]
        print_rows(rows, as_json, nothing="the same settings, data and metrics")
