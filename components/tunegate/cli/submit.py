"""``tunegate submit`` and ``tunegate follow``: a run on a KFP cluster, from this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tunegate.cli.arguments import ClusterOption, JsonOption, ModelOption, RecipeArgument, SetOption
from tunegate.cli.shown import errors_shown, print_json
from tunegate.contracts.errors import Interrupted, TunegateError

commands = typer.Typer()

_PollOption = Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the run.")]


@commands.command()
def submit(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006
    cluster: ClusterOption = Path("cluster.yaml"),
    model: ModelOption = "",
    pipeline: Annotated[str, typer.Option(help="finetune or retrain.")] = "finetune",
    name: Annotated[str, typer.Option(help="The run's name; of recipe and time otherwise.", show_default=False)] = "",
    follow: Annotated[bool, typer.Option(help="Wait for the run's end, and end with its exit code.")] = True,
    poll_seconds: _PollOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Upload the pipeline to a KFP cluster as a version, start a run of a recipe, and follow it to its end."""
    console = Console(file=sys.stderr if as_json else sys.stdout)
    with errors_shown():
        from tunegate_pipelines.submit import checked_pipeline, submitted

        started = submitted(recipe, set_, cluster, pipeline=checked_pipeline(pipeline), model=model, name=name)
        for line in started.told():
            console.print(Text(line), soft_wrap=True)
        if not follow:
            if as_json:
                print_json(started.to_json())
            return
        _follow(started.server, started.run_id, started.tasks, console, poll_seconds, started.to_json(), as_json)


@commands.command("follow")
def follow_(
    run: Annotated[str, typer.Argument(help="The run's id, as submit prints it.", show_default=False)],
    cluster: ClusterOption = Path("cluster.yaml"),
    poll_seconds: _PollOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Follow a run on a KFP cluster to its end, and end with its exit code."""
    console = Console(file=sys.stderr if as_json else sys.stdout)
    with errors_shown():
        from tunegate_pipelines.submit import server_of

        server = server_of(cluster)
        _follow(server, run, 0, console, poll_seconds, {"run": run, "link": server.link(run)}, as_json)


def _follow(
    server: Any,
    run_id: str,
    tasks: int,
    console: Console,
    poll_seconds: float,
    told: dict[str, Any],
    as_json: bool,
) -> None:
    """Shows a run to its end; a document for scripts is printed however it ended, or its following did.

    Args:
        tasks: how many it may run; 0 where that is not known, and neither is whether there is such a run.
    """
    import contextlib

    from tunegate_pipelines.follow import view_for
    from tunegate_pipelines.follow_run import Followed, follow_run, refuse_unless_succeeded
    from tunegate_pipelines.stages import LABELS

    followed, stopped = Followed(), ""
    try:
        with contextlib.closing(view_for(console)) as view:
            follow_run(server, run_id, view, total=tasks, labels=LABELS, poll_seconds=poll_seconds, followed=followed)
    except (KeyboardInterrupt, TunegateError) as error:
        if isinstance(error, TunegateError) and not tasks and followed.run is None:
            raise
        stopped = f"{error.failed} {error.seen}" if isinstance(error, TunegateError) else "Ctrl-C"
    if as_json:
        print_json({**told, **followed.to_json()})
    if stopped:
        raise Interrupted(
            "The run goes on; only its following was stopped.",
            seen=stopped,
            expected="its end",
            remedy=f"tunegate follow {run_id}, or look at {server.link(run_id)}",
        )
    refuse_unless_succeeded(followed, server.link(run_id))
    console.print(Text(f"done  {server.link(run_id)}", "green"), soft_wrap=True)
