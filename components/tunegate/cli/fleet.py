"""``tunegate fleet``: many adapters on one base."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.deploy import (
    CheckOption,
    FolderOption,
    HostOption,
    PortOption,
    PublicKeyOption,
    PythonOption,
    ServingRecipeOption,
    ServingSetOption,
    local_settings,
    serving_sections,
    until_stopped,
)
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer(no_args_is_help=True, help="Many adapters on one base.")

FleetArgument = Annotated[Path, typer.Argument(help="A fleet file: base, and adapters by alias.", show_default=False)]


@commands.command()
def plan(
    fleet: FleetArgument,
    recipe: ServingRecipeOption = None,
    check: CheckOption = None,
    public_key: PublicKeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say what one vLLM would serve of a fleet file, or why it would not; nothing is started, asked or kept."""
    with errors_shown():
        from tunegate.fleet.build import build_fleet, read_built

        _, signing = serving_sections(recipe, public_key)
        asks = local_settings(check=check).check != "none"
        resolved = dataclasses.replace(_resolved(fleet, "auto", signing, check=asks), probes=None)
        with tempfile.TemporaryDirectory(prefix="tunegate-fleet-plan-") as scratch:
            with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
                build_fleet(resolved, signing, Path(scratch) / "fleet")
            planned = read_built(Path(scratch) / "fleet")
        _show(planned, as_json)


@commands.command()
def build(
    fleet: FleetArgument,
    output: Annotated[Path, typer.Option(help="Where the fleet is written.", show_default=False)],
    recipe: ServingRecipeOption = None,
    check: CheckOption = None,
    public_key: PublicKeyOption = "",
    python: PythonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Export the adapters of a fleet file under their digests, with what the PEFT model of each answers."""
    with errors_shown():
        from tunegate.fleet.build import build_fleet, read_built
        from tunegate.serving.environment import find_environment
        from tunegate.serving.flags import served_dtype

        flags, signing = serving_sections(recipe, public_key)
        dtype = served_dtype(flags, find_environment(python)) if flags.dtype == "auto" else flags.dtype
        asks = local_settings(check=check).check != "none"
        with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
            build_fleet(_resolved(fleet, dtype, signing, check=asks), signing, output)
        _show(read_built(output), as_json)


@commands.command()
def serve(
    fleet: FleetArgument,
    folder: FolderOption = Path("runs/serving"),
    recipe: ServingRecipeOption = None,
    host: HostOption = None,
    port: PortOption = None,
    check: CheckOption = None,
    public_key: PublicKeyOption = "",
    python: PythonOption = "",
    overrides: ServingSetOption = [],  # noqa: B006 - typer wants a list
) -> None:
    """Serve a fleet file on this machine, at an address that stays, and follow the file until stopped."""
    with errors_shown():
        from tunegate.deploy.supervisor import supervise
        from tunegate.fleet.source import FleetSource
        from tunegate.serving.environment import find_environment

        local = local_settings(overrides, host=host, port=port, check=check, python=python)
        flags, signing = serving_sections(recipe, public_key, overrides)
        where = find_environment(local.python)
        source = FleetSource(fleet, folder / "fleets", local, flags, signing, where)
        source.wanted()  # what is wrong in the file is said before anything starts
        until_stopped(lambda stop: supervise(source, local, where, folder=folder, stop=stop))


@commands.command()
def manifest(
    built: Annotated[Path, typer.Argument(help="What `tunegate fleet build` wrote.", show_default=False)],
    fleet_uri: Annotated[
        str, typer.Option(help="Where the cluster reads it: a folder in a bucket.", show_default=False)
    ],
    base_uri: Annotated[str, typer.Option(help="Where the cluster reads its base.", show_default=False)],
    name: Annotated[str, typer.Option(help="What the objects are named after.")] = "fleet",
    namespace: Annotated[str, typer.Option(help="Where; empty: where they are applied.")] = "",
    image: Annotated[str, typer.Option(help="The image that holds vLLM; empty: that of this version.")] = "",
    replicas: Annotated[int, typer.Option(help="Servers.")] = 1,
    accelerators: Annotated[int, typer.Option(help="GPUs of one server.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory of one server.")] = "64Gi",
    picker: Annotated[str, typer.Option(help="Service of llm-d's endpoint picker; then aliases are known.")] = "",
    recipe: ServingRecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a built fleet as documents for a cluster, which pods fetch and hash before vLLM starts."""
    with errors_shown():
        import yaml

        from tunegate.contracts.settings import parse_settings
        from tunegate.fleet.manifest import ClusterFleet, fleet_documents

        given: dict[str, Any] = {"fleet_uri": fleet_uri, "base_uri": base_uri, "name": name, "namespace": namespace}
        given |= {"replicas": replicas, "accelerators": accelerators, "memory": memory, "picker": picker}
        settings = parse_settings(ClusterFleet, given | ({"image": image} if image else {}), where="fleet manifest")
        flags, _ = serving_sections(recipe, "")
        documents = fleet_documents(built, settings, flags)
        if as_json:
            print_json(documents)
        else:
            typer.echo(yaml.safe_dump_all(documents, sort_keys=False), nl=False)


def _resolved(path: Path, dtype: str, signing: Any, *, check: bool) -> Any:
    from tunegate.fleet.file import read_fleet
    from tunegate.fleet.resolve import Digests, resolve
    from tunegate.storage.open import open_storage

    fleet = read_fleet(path)
    storage = open_storage(fleet.registry) if fleet.registry else None
    return resolve(fleet, Digests(), storage, dtype=dtype, signing=signing, check=check)


def _show(built: Any, as_json: bool) -> None:
    if as_json:
        print_json(built.to_json())
        return
    lines = [f"base {built.base}"]
    for adapter in built.adapters:
        judged = f"version {adapter.version[:12]}" if adapter.version else "not judged by a gate"
        lines.append(f"{adapter.alias} → {adapter.served}  rank {adapter.rank}  {judged}")
        lines += [f"  not checked: {each}" for each in adapter.unchecked]
    lines.append(f"--max-loras {built.max_loras} --max-lora-rank {built.max_lora_rank}")
    Console().print(Text("\n".join(lines)), soft_wrap=True)
