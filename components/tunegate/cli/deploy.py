"""``tunegate deploy``: serve what an alias points at; ``tunegate deployed``: what is served on this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.cli.arguments import AliasArgument, JsonOption, RegistryArgument
from tunegate.cli.shown import errors_shown, print_json, print_rows

if TYPE_CHECKING:
    from tunegate.deploy.settings import LocalSettings
    from tunegate.deploy.supervisor import Stop

commands = typer.Typer()

#: Target → the options that it alone has. No option is taken and ignored.
_OWN = {"local": ("folder", "host", "port", "python"), "kserve": ("output", "as_json")}

FolderOption = Annotated[Path, typer.Option(help="Where the files, logs and state of what is served lie.")]
ServingRecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="A recipe whose sections 'serving' and 'signing' are used.", show_default=False),
]
HostOption = Annotated[str | None, typer.Option(help="Where the stable address listens.", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="Its port; 0: one that is free.", show_default="8000")]
CheckOption = Annotated[
    str | None,
    typer.Option(help="'probes': what was evaluated must be answered; or 'none'.", show_default="probes"),
]
PublicKeyOption = Annotated[str, typer.Option(help="PEM file: versions must be signed with this key.")]
ReadyOption = Annotated[float | None, typer.Option(help="How long a server may load, in seconds.", show_default="900")]
ServingSetOption = Annotated[
    list[str],
    typer.Option("--set", help="serving.NAME=VALUE, signing.NAME=VALUE or deploy.NAME=VALUE. Repeatable."),
]
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
    overrides: ServingSetOption = [],  # noqa: B006 - typer wants a list
    check: CheckOption = None,
    public_key: PublicKeyOption = "",
    ready_seconds: ReadyOption = None,
    folder: FolderOption = Path("runs/serving"),
    host: HostOption = None,
    port: PortOption = None,
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

        local = local_settings(overrides, host=host, port=port, check=check, python=python, ready_seconds=ready_seconds)
        where, storage = find_environment(local.python), open_storage(registry)
        source = AliasSource(storage, alias, folder / "versions", local, flags, signing, where)
        source.refuse_unknown()
        until_stopped(lambda stop: supervise(source, local, where, folder=folder, stop=stop))


@commands.command()
def deployed(folder: FolderOption = Path("runs/serving"), as_json: JsonOption = False) -> None:
    """Show what a supervisor on this machine serves, and what it refused."""
    with errors_shown():
        from tunegate.deploy.state import read_state

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
    used = ("serving", "signing", "deploy")
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


def local_settings(overrides: Sequence[str] = (), **given: Any) -> LocalSettings:
    """How something is served on this machine, checked.

    Args:
        overrides: ``deploy.NAME=VALUE``; those of other sections are left to them.
        given: settings with options of their own; None where an option was not given.
    """
    from tunegate.contracts.settings import parse_settings
    from tunegate.deploy.settings import LocalSettings

    values = _deploy_section(None, [one for one in overrides if one.startswith("deploy.")])
    values |= {name: value for name, value in given.items() if value is not None}
    return parse_settings(LocalSettings, values, where="deploy")


def until_stopped(serve: Callable[[Stop], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; a second one cuts the requests that are waited for."""
    from tunegate.deploy.supervisor import Stop

    stop = Stop()

    def asked(number: int, frame: object) -> None:
        if stop.asked.is_set():
            stop.hurry.set()
        stop.asked.set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    serve(stop)


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
