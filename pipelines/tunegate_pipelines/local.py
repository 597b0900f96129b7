"""Runs the pipeline ``finetune`` on this machine, step by step, through kfp.local."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tunegate.approve.identity import on_this_machine
from tunegate.contracts.errors import InputError, Interrupted, RunError, SettingsError
from tunegate.contracts.manifest import MANIFEST_NAME
from tunegate.preflight.lint import Linted, refuse
from tunegate.quantize.legacy.environment import check_environment
from tunegate.registry.minimum import read_minimum
from tunegate.storage.open import open_storage
from tunegate_pipelines.addresses import local_addresses, registry_made
from tunegate_pipelines.follow import Follower, RunStopped, view_for
from tunegate_pipelines.form import ADDRESSES, FORM, SECTIONS
from tunegate_pipelines.lint_recipe import lint_recipe
from tunegate_pipelines.own_tasks import absolute_tasks, check_own_tasks
from tunegate_pipelines.recipe import Recipe, Sections, check_destination, refuse_unreachable, resolve
from tunegate_pipelines.report import KFP_FOLDER, finally_reported, read_report, write_lint
from tunegate_pipelines.run_page import write_pages
from tunegate_pipelines.served_here import served_here
from tunegate_pipelines.stopping import stop_passed_on
from tunegate_pipelines.unfinished import CHECKPOINTS_FOLDER, EVALUATIONS_FOLDER, INPUTS_FOLDER, LOG_NAME, under_way

REQUIRED = ("base_model", "dataset", "registry")


def check_recipe(recipe: Recipe) -> Linted:
    """What can be said of a recipe before anything is written or started.

    Raises:
        SettingsError: when it is incomplete or something in it is unknown or out of range.
        InputError: for an alias, a registry or a task file that cannot be used.
    """
    missing = [name for name in REQUIRED if not recipe.form.get(name)]
    if missing:
        raise SettingsError(
            "recipe.run is incomplete.",
            seen=f"no {', '.join(missing)}",
            expected=f"at least {', '.join(REQUIRED)}",
            remedy="add them to the section 'run', or give them with --set NAME=VALUE",
        )
    wrong = [name for name in ADDRESSES if not isinstance(recipe.form.get(name, ""), str)]
    if wrong:
        raise SettingsError(
            f"recipe.run.{wrong[0]} has the wrong type.",
            seen=repr(recipe.form[wrong[0]]),
            expected="text: a path, or a name",
            remedy="put it in quotes",
        )
    recipe, _ = served_here(recipe)
    sections = resolve(form_settings(recipe), recipe.sections)
    check_destination(sections, recipe.form["registry"])
    check_own_tasks(sections)
    check_environment(sections["quantize"]["backend"], given=sections["quantize"]["legacy_python"])
    return _linted(sections, recipe.form)


def _linted(sections: Sections, addresses: Mapping[str, Any]) -> Linted:
    return lint_recipe(sections, base_model=addresses["base_model"], dataset=addresses["dataset"])


def form_settings(recipe: Recipe) -> dict[str, Any]:
    """The run form without its addresses."""
    return {name: value for name, value in recipe.form.items() if name in FORM}


def run_local(recipe: Recipe, output: Path, console: Console) -> None:
    """Runs the pipeline and writes ``output``: log, artifacts, pages and ``index.html``. Returns when it was promoted.

    Args:
        recipe: what to run.
        output: a folder that does not exist yet, or that of the same recipe when it did not reach its end: it goes on.
        console: where the progress is shown.

    Raises:
        InputError: for a recipe, model or data set that cannot be used; nothing is left behind then.
        GateRefused: when the verdict is not PASS.
        Interrupted: when the process was asked to stop.
        TunegateError: what else a step reported.
        RunError: when a step failed without saying why.
    """
    linted = check_recipe(recipe)
    refuse(linted)
    here, told = served_here(recipe)
    if told:
        console.print(Text(told), soft_wrap=True)
    for finding in linted.findings:
        console.print(
            Text(f"{finding.severity} {finding.rule}: {finding.seen}; {finding.remedy}", "yellow"), soft_wrap=True
        )
    for name in ("registry", "checkpoint_uri"):
        refuse_unreachable(recipe.form.get(name, ""))
    new = not output.exists()
    with under_way(output, recipe), finally_reported(lambda: _report(output), console):
        try:
            with registry_made(recipe.form["registry"]):
                _run(here, output, console)
        except InputError:
            if new and not any((output / KFP_FOLDER).rglob(MANIFEST_NAME)):
                shutil.rmtree(output)
            raise


def _report(output: Path) -> None:
    if output.exists():
        write_pages(read_report(output), output)


def _run(recipe: Recipe, output: Path, console: Console) -> None:
    from tunegate_pipelines.stages import LABELS

    view = view_for(console)
    speakers = frozenset({*SECTIONS, "demo"})
    with (
        (output / LOG_NAME).open("a", encoding="utf-8") as log,
        contextlib.closing(view),
        stop_passed_on() as stop,
    ):
        follower = Follower(log, view, speakers, LABELS, lambda: stop.requested)
        finished = False
        try:
            with contextlib.redirect_stdout(follower), contextlib.redirect_stderr(follower):
                arguments = _arguments(recipe, output)
                write_lint(_linted(resolve(form_settings(recipe), recipe.sections), arguments), output)
                _start(arguments, output / KFP_FOLDER)
            finished = True
        except RunStopped:
            pass
        except RuntimeError:  # how kfp.local says that a task failed; anything else is not expected, and shows itself
            if not follower.failed_task:
                raise
    if isinstance(follower.error, Interrupted) or (stop.requested and follower.error is None and not finished):
        raise _interrupted(follower, output)
    if follower.error is not None:
        raise follower.error
    if follower.failed_task:
        raise RunError(
            f"The task {follower.failed_task} failed.",
            seen="\n" + "\n".join(f"    {line}" for line in follower.tail),
            expected="a step that ends well, or an error that says why not",
            remedy=f"read {output / LOG_NAME}",
        )


def _interrupted(follower: Follower, output: Path) -> Interrupted:
    """What a step said of its interruption, or that it said nothing, with the way to go on."""
    error = follower.error
    return Interrupted(
        error.failed if error else f"The run was interrupted{f' in {task}' if (task := follower.failed_task) else ''}.",
        seen=error.seen if error else "a request to stop (SIGTERM or SIGINT)",
        expected="a run to its end",
        remedy=f"start it again with the same recipe and --output {output}: training goes on from its last checkpoint",
    )


def _start(arguments: Mapping[str, Any], root: Path) -> None:
    from kfp import local

    from tunegate_pipelines.finetune import finetune

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images, limits and accelerators, which mean nothing here
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        finetune(**arguments)


def _arguments(recipe: Recipe, output: Path) -> dict[str, Any]:
    """The pipeline's arguments: the run form with its addresses made real, and the recipe's other sections.

    Values come as the settings parsed them: KFP tells whole numbers from others, and 1 epoch is 1.0.
    """
    settings = resolve(form_settings(recipe), recipe.sections)
    form = {name: settings[step][setting] for name, ((step, setting), *_) in FORM.items() if name in recipe.form}
    addresses = {name: str(recipe.form[name]) for name in ADDRESSES if recipe.form.get(name)}
    addresses.setdefault("checkpoint_uri", str(output / CHECKPOINTS_FOLDER))
    addresses.setdefault("reuse_evaluations", str(output / EVALUATIONS_FOLDER))
    inputs = (output / INPUTS_FOLDER).resolve()
    return {**form, **local_addresses(addresses, inputs), "recipe": absolute_tasks(_asking_only_where_said(recipe))}


def _asking_only_where_said(recipe: Recipe) -> dict[str, Any]:
    """The recipe's sections; on this machine, for a folder of it, nobody is asked unless recipe or registry say so."""
    sections = dict(recipe.sections)
    approve = sections.get("approve") or {}
    here = "required" not in approve and on_this_machine(recipe.form["registry"], os.environ)
    if here and not ((minimum := read_minimum(open_storage(recipe.form["registry"]))) and minimum.required):
        sections["approve"] = {**approve, "required": False}
    return sections
