"""``tunegate deploy``: serve what an alias points at; ``tunegate deployed``: what is served."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows

if TYPE_CHECKING:
    from tunegate.deploy.settings import LocalSettings

commands = typer.Typer()

FolderOption = Annotated[Path, typer.Option(help="Where the files, logs and state of what is served lie.")]
ServingRecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="A recipe whose sections 'serving' and 'signing' are used.", show_default=False),
]
HostOption = Annotated[str, typer.Option(help="Where the stable address listens.")]
PortOption = Annotated[int, typer.Option(help="Where it listens; 0: one that is free.")]
CheckOption = Annotated[str, typer.Option(help="'probes': what was evaluated must be answered; or 'none'.")]
PublicKeyOption = Annotated[str, typer.Option(help="PEM file: versions must be signed with this key.")]
DrainOption = Annotated[float, typer.Option(help="How long requests of a replaced server may take.")]
ReadyOption = Annotated[float, typer.Option(help="How long a server may load.")]
PythonOption = Annotated[str, typer.Option(help="The Python that holds vLLM.")]


@commands.command()
def deploy(
    registry: RegistryArgument,
    alias: AliasArgument,
    folder: FolderOption = Path("runs/serving"),
    recipe: ServingRecipeOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    check: CheckOption = "probes",
    public_key: PublicKeyOption = "",
    drain_seconds: DrainOption = 600.0,
    ready_seconds: ReadyOption = 900.0,
    python: PythonOption = "",
) -> None:
    """Serve what an alias points at on this machine, at an address that stays, and follow the alias until stopped."""
    with errors_shown():
        from tunegate.deploy.alias import AliasSource
        from tunegate.deploy.supervisor import supervise
        from tunegate.serving.environment import find_environment
        from tunegate.storage.open import open_storage

        given: dict[str, Any] = {"host": host, "port": port, "check": check, "python": python}
        settings = local_settings(**given, drain_seconds=drain_seconds, ready_seconds=ready_seconds)
        flags, signing = serving_sections(recipe, public_key)
        where, storage = find_environment(settings.python), open_storage(registry)
        source = AliasSource(storage, alias, folder / "versions", settings, flags, signing, where)
        source.refuse_unknown()
        until_stopped(lambda stopping: supervise(source, settings, where, folder=folder, stopping=stopping))


@commands.command()
def deployed(folder: FolderOption = Path("runs/serving"), as_json: JsonOption = False) -> None:
    """Show what a supervisor on this machine serves, and what it refused."""
    with errors_shown():
        from tunegate.deploy.supervisor import read_state

        state = read_state(folder)
        if as_json:
            print_json(state)
        else:
            print_rows([{"what": name, "is": value} for name, value in state.items() if value is not None], False)


def local_settings(**given: Any) -> LocalSettings:
    """How something is served on this machine, checked."""
    from tunegate.contracts.settings import parse_settings
    from tunegate.deploy.settings import LocalSettings

    return parse_settings(LocalSettings, given, where="deploy")


def until_stopped(serve: Callable[[threading.Event], None]) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            return
        stopping.set()
        raise KeyboardInterrupt  # out of whatever is being waited for; what was started is stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with contextlib.suppress(KeyboardInterrupt):
        serve(stopping)


def serving_sections(recipe: Path | None, public_key: str) -> tuple[Any, Any]:
    """The flags of production, and whose signature counts."""
    from tunegate.contracts.settings import parse_settings
    from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
    from tunegate.serving.flags import ServingFlags
    from tunegate_pipelines.recipe import read_recipe

    sections = read_recipe(recipe).sections if recipe else {}
    flags = parse_settings(ServingFlags, sections.get("serving", {}), where="serving")
    given = dict(sections.get("signing", {}))
    signing = parse_settings(
        SigningSettings, {**given, "method": "key", "public_key": public_key} if public_key else given, where="signing"
    )
    refuse_unusable_signing(signing, signs=False)
    return flags, signing
