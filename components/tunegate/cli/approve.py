"""``tunegate approve``, ``reject`` and ``promote``: an approval request answered, and what was approved put to use."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import JsonOption
from tunegate.cli.shown import errors_shown, print_json

commands = typer.Typer()

RequestArgument = Annotated[str, typer.Argument(help="The request's digest, or its first letters.", show_default=False)]
RegistryOption = Annotated[str, typer.Option(help="The registry: a folder or URI.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the history.", show_default=False)]


@commands.command()
def approve(
    request: RequestArgument, registry: RegistryOption, reason: ReasonOption, as_json: JsonOption = False
) -> None:
    """Approve a request, as the person that its rules know you as."""
    _answer(request, "approve", registry, reason, as_json)


@commands.command()
def reject(
    request: RequestArgument, registry: RegistryOption, reason: ReasonOption, as_json: JsonOption = False
) -> None:
    """Reject a request; whoever made it may take it back so."""
    _answer(request, "reject", registry, reason, as_json)


def _answer(request: str, decision: str, registry: str, reason: str, as_json: bool) -> None:
    with errors_shown():
        from tunegate.approve.decide import run

        asked, answered = run(request, decision, reason=reason, registry=registry, environment=os.environ)
        if as_json:
            print_json(answered.to_json())
            return
        console = Console()
        said = f"{answered.decision}: {asked.alias} to {asked.version[:12]}, as {answered.approver.name}"
        console.print(Text(said), soft_wrap=True)
        if answered.decision == "approve":
            waiting = f"a run that waits goes on; otherwise: tunegate promote {asked.digest[:12]} --registry {registry}"
            waiting += " --public-key KEY" if asked.rules.require_signature else ""
            console.print(Text(waiting), soft_wrap=True)


@commands.command()
def promote(
    request: RequestArgument,
    registry: RegistryOption,
    public_key: Annotated[
        Path | None, typer.Option(help="Verify the version's signature with this key.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Move an alias to the version that an approved request names. An approval is used once."""
    with errors_shown():
        from tunegate.contracts.files import read_json_object
        from tunegate.promote.approved import run
        from tunegate.registry.settings import SigningSettings

        signing = SigningSettings("key", public_key=str(public_key)) if public_key else SigningSettings()
        with tempfile.TemporaryDirectory(prefix="tunegate-promotion-") as scratch:
            output = Path(scratch) / "promotion"
            with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress is no part of the document
                run(signing, registry=registry, request=request, output=output)
            document = read_json_object(output / "promotion.json")
        if as_json:
            print_json(document)
        else:
            Console().print(Text(f"{document['alias']} points at {document['version']}"), soft_wrap=True)
