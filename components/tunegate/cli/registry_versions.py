"""``tunegate registry verify`` and ``diff``: what a version holds, and what differs between two."""

from __future__ import annotations

import tempfile
from pathlib import Path
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
def registry_verify(
    registry: RegistryArgument,
    version: VersionArgument,
    public_key: Annotated[
        str, typer.Option("--public-key", help="PEM file: the version must be signed with this key.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a version where it lies, and name each file that is not what it should be.

    With a public key a copy is made below the system's temporary folder, and its signature is verified as well.
    """
    with errors_shown():
        from tunegate.registry.named import named_version
        from tunegate.registry.settings import SigningSettings
        from tunegate.registry.signatures import fetch_signed_version
        from tunegate.registry.versions import verify_version
        from tunegate.storage.open import open_storage

        storage = open_storage(registry)
        digest = named_version(storage, version)
        if public_key:
            with tempfile.TemporaryDirectory(prefix="tunegate-version-") as scratch:
                signing = SigningSettings("key", public_key=public_key)
                files = fetch_signed_version(storage, digest, Path(scratch) / "version", signing).files
        else:
            files = verify_version(storage, digest).files
        size = sum(entry.size_bytes for entry in files)
        if as_json:
            found = {"version": digest, "files": len(files) + 1, "size_bytes": size}
            print_json({**found, "signature": "verified" if public_key else "not asked for"})
        else:
            told = f"{digest}: {len(files) + 1} files, {size:,} bytes, each as it was published"
            Console().print(Text(told + (f" and signed with {public_key}" if public_key else "")))


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
