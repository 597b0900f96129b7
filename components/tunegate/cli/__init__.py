"""The command ``tunegate``. Exit codes: 0 done, 1 a failed run, 2 bad input, 3 a gate that said no, 75 try again."""

from __future__ import annotations

import typer

from tunegate.cli import (
    approve,
    costs,
    deploy,
    evaluate,
    export,
    fleet,
    init,
    lint,
    plan,
    registry,
    report,
    rollback,
    run,
    schedule,
    submit,
)
from tunegate.cli import compile as compile_

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
for group in (init, run, submit, schedule, report, lint, evaluate, export, plan, compile_, approve, rollback, deploy):
    app.add_typer(group.commands)
app.add_typer(registry.commands, name="registry")
app.add_typer(fleet.commands, name="fleet")
app.add_typer(costs.commands, name="costs")
