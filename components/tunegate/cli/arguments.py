"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
SetOption = Annotated[
    list[str], typer.Option("--set", help="NAME=VALUE of the run form, or STEP.NAME=VALUE. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
RegistryArgument = Annotated[str, typer.Argument(help="The registry: a folder or URI.", show_default=False)]
AliasArgument = Annotated[str, typer.Argument(help="The alias.", show_default=False)]
ClusterOption = Annotated[
    Path, typer.Option("--cluster", help="The cluster file: where KFP answers, and what its nodes have.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        help="A known model or a config.json for the memory plan, where base_model is not on this machine.",
        show_default=False,
    ),
]
