"""``tunegate deploy``: serve what an alias points at; ``tunegate deployed``: what is served on this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument, SetOption
from tunegate.cli.shown import errors_shown, print_json, print_rows

if TYPE_CHECKING:
    from tunegate.deploy.settings import LocalSettings

commands = typer.Typer()

#: Target → the options that it alone has. No option is taken and ignored.
_OWN = {"local": ("folder", "host", "port", "drain_seconds", "python"), "kserve": ("output", "as_json")}

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
    context: typer.Context,
    target: Annotated[
        str, typer.Option(help="'local': this machine; 'kserve': a cluster, by the recipe's section 'deploy'.")
    ] = "local",
    recipe: ServingRecipeOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer wants a list
    check: CheckOption = "probes",
    public_key: PublicKeyOption = "",
    ready_seconds: ReadyOption = 900.0,
    folder: FolderOption = Path("runs/serving"),
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    drain_seconds: DrainOption = 600.0,
    python: PythonOption = "",
    output: Annotated[
        Path | None, typer.Option(help="kserve: where the deployment's report is kept.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve what an alias points at: here until stopped, following the alias; or on a cluster, first as a canary.

    On a cluster it ends when the version has all the traffic, or with exit code 3 when it was rolled back.
    """
    with errors_shown():
        stated = _stated(context, target, overrides)
        flags, signing = serving_sections(recipe, public_key, overrides)
        if target == "kserve":
            told = {name: stated[name] for name in ("check", "ready_seconds") if name in stated}
            _on_cluster(_deploy_section(recipe, overrides) | told, flags, signing, registry, alias, output, as_json)
            return
        from tunegate.deploy.alias import AliasSource
        from tunegate.deploy.supervisor import supervise
        from tunegate.serving.environment import find_environment
        from tunegate.storage.open import open_storage

        given: dict[str, Any] = {"host": host, "port": port, "check": check, "python": python}
        settings = local_settings(**given, drain_seconds=drain_seconds, ready_seconds=ready_seconds)
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


def _on_cluster(
    section: dict[str, Any], flags: Any, signing: Any, registry: str, alias: str, output: Path | None, as_json: bool
) -> None:
    from tunegate.contracts.settings import parse_settings
    from tunegate.deploy.launcher import stopped_by_signals
    from tunegate.deploy.settings import ClusterSettings
    from tunegate.deploy.step import DEPLOYMENT_NAME, run

    settings = parse_settings(ClusterSettings, section, where="recipe.deploy")
    with tempfile.TemporaryDirectory(prefix="tunegate-deployment-") as scratch:
        kept = output or Path(scratch) / "deployment"
        stopping = stopped_by_signals()
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
            run(settings, flags, signing, registry=registry, alias=alias, output=kept, stopping=stopping)
        told = json.loads((kept / DEPLOYMENT_NAME).read_text("utf-8"))
    if as_json:
        print_json(told)
    else:
        shown = {name: told[name] for name in ("version", "model", "replaced", "namespace", "service", "url")}
        print_rows([{"what": name, "is": value or "nothing"} for name, value in shown.items()], False)


def _stated(context: typer.Context, target: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The options that were given, and not left to their defaults.

    Raises:
        SettingsError: for one that this target does not use.
    """
    from tunegate.contracts.errors import SettingsError

    if target not in _OWN:
        raise SettingsError(
            "There is no such target.",
            seen=target,
            expected=f"one of {', '.join(_OWN)}",
            remedy="leave --target out to serve on this machine",
        )
    given = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    }
    foreign = [name for other, names in _OWN.items() if other != target for name in names if name in given]
    unused = ["--json" if name == "as_json" else f"--{name.replace('_', '-')}" for name in foreign]
    used = ("serving", "signing", "deploy") if target == "kserve" else ("serving", "signing")
    unused += [f"--set {one}" for one in overrides if one.partition("=")[0].partition(".")[0] not in used]
    if unused:
        raise SettingsError(
            f"Options were given that --target {target} does not use.",
            seen=", ".join(unused),
            expected=f"options of {target}; --set {'.NAME=VALUE, '.join(used)}.NAME=VALUE",
            remedy="leave them out, or change --target",
        )
    return given


def _deploy_section(recipe: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    from tunegate_pipelines.recipe import read_recipe

    return dict(read_recipe(recipe, overrides).sections.get("deploy", {}))


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


def serving_sections(recipe: Path | None, public_key: str, overrides: Sequence[str] = ()) -> tuple[Any, Any]:
    """The flags of production, and whose signature counts."""
    from tunegate.contracts.settings import parse_settings
    from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
    from tunegate.serving.flags import ServingFlags
    from tunegate_pipelines.recipe import read_recipe

    sections = read_recipe(recipe, overrides).sections
    flags = parse_settings(ServingFlags, sections.get("serving", {}), where="serving")
    given = dict(sections.get("signing", {}))
    signing = parse_settings(
        SigningSettings, {**given, "method": "key", "public_key": public_key} if public_key else given, where="signing"
    )
    refuse_unusable_signing(signing, signs=False)
    return flags, signing
