"""Looks at a person's data and base, and writes what a first run needs; nothing that is there is overwritten."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError, OutputExistsError, SettingsError
from tunegate.contracts.vllm import SERVING_TARGETS
from tunegate.preflight.lint import Linted
from tunegate.preflight.this_machine import this_machine
from tunegate.prepare.read import read_source
from tunegate.registry.aliases import check_alias_name
from tunegate.serving.environment import find_environment
from tunegate_pipelines.init.asked import held_out_task, task_name
from tunegate_pipelines.init.base import read_base
from tunegate_pipelines.init.chosen import choose
from tunegate_pipelines.init.observed import observe
from tunegate_pipelines.init.policy_text import judged_by
from tunegate_pipelines.init.recipe_text import Places, Plan, recipe_text
from tunegate_pipelines.init.task_text import task_text
from tunegate_pipelines.local import check_recipe
from tunegate_pipelines.recipe import read_recipe

RECIPE_NAME, TASKS_FOLDER, REGISTRY_FOLDER, RUN_FOLDER = "recipe.yaml", "tasks", "registry", "run"

#: Where nothing on this machine could serve: most GPUs that do are of this kind.
_ELSEWHERE = "vllm-cuda-sm90"


@dataclass(frozen=True)
class Written:
    """What was written, and from what.

    Attributes:
        plan: what was seen and chosen.
        files: in the order of their writing; the recipe is the last.
        notes: what a person should know of the rows.
        linted: what the lint says of the recipe.
    """

    plan: Plan
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    linted: Linted

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        observed, chosen, judged, task = self.plan.observed, self.plan.chosen, self.plan.judged, self.plan.task
        lengths = observed.lengths
        return {
            "written": [str(path) for path in self.files],
            "data": {
                "rows": observed.read,
                "format": observed.format,
                "columns": list(observed.columns),
                "unusable": [{"where": row.where, "reason": row.reason} for row in observed.unusable],
                "answers": observed.kind,
                "labels": list(observed.labels),
                "longest_row_tokens": max(lengths.rows, default=0),
                "longest_answer_tokens": lengths.answer,
                "tokens_measured": lengths.measured,
                "sides": {side: len(chosen.of(side)) for side in ("train", "validation", "evaluation")},
            },
            "task": {"name": task.name, "type": task.type, "rows": len(task.rows)} if task else None,
            "judged_by": {"task": judged.task, "metric": judged.metric, "rows": judged.rows, "margin": judged.margin},
            "notes": list(self.notes),
            "lint": self.linted.to_json(),
        }


def write_first_recipe(
    folder: Path,
    *,
    base_model: str,
    data: str,
    alias: str,
    registry: str = "",
    serving_target: str = "",
    serve_check: bool | None = None,
) -> Written:
    """Writes a recipe with its policy, and a task with its rows.

    Args:
        folder: where they are put; made where it is missing.
        base_model: a folder, ``org/name@commit`` of a hub, or ``demo``.
        data: what prepare reads: a file, a folder of files, or ``org/name@commit`` of a hub.
        alias: that will move to what is promoted.
        registry: a folder or gs://; one below ``folder`` otherwise.
        serving_target: what will serve; otherwise this machine where it can.
        serve_check: whether the run asks vLLM before the gate; None: where this machine has one.

    Raises:
        InputError: for a base, data or a name that cannot be used, or too few rows.
        OutputExistsError: where one of the files is there already. Nothing is written then.
    """
    check_alias_name(alias)
    target = _serving_target(serving_target)
    recipe = folder / RECIPE_NAME
    _refuse_existing([recipe])
    base = read_base(base_model)
    observed = observe(read_source(data), base.tokenizer)
    chosen = choose(observed, positions=base.positions)
    name = task_name(Path(data.partition("@")[0]).stem)
    task = held_out_task(observed, chosen, name=name)
    places = Places(
        recipe=str(recipe),
        dataset=data,
        registry=registry or str(folder / REGISTRY_FOLDER),
        task=str(folder / TASKS_FOLDER / f"{name}.yaml") if task else "",
        run=str(folder / RUN_FOLDER),
    )
    plan = Plan(
        places=places,
        base=base,
        observed=observed,
        chosen=chosen,
        task=task,
        judged=judged_by(task, chosen, calls=observed.kind == "tool_call"),
        alias=alias,
        serving_target=target,
        serve_check=_has_vllm() if serve_check is None else serve_check,
    )
    files: dict[Path, str] = {}
    if task:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in task.rows)
        files[folder / TASKS_FOLDER / f"{name}.jsonl"] = rows
        files[Path(places.task)] = task_text(task, chosen, data=f"{name}.jsonl", source=data)
    files[recipe] = recipe_text(plan)
    _refuse_existing(list(files))
    with _all_or_none(list(files)):
        _write(files)
        linted = check_recipe(read_recipe(recipe))
    return Written(plan, tuple(files), _notes(plan), linted)


def _serving_target(given: str) -> str:
    if given and given not in SERVING_TARGETS:
        raise SettingsError(
            f"There is no serving target {given!r}.",
            seen=repr(given),
            expected=f"one of {', '.join(SERVING_TARGETS)}",
            remedy="name the hardware that will serve the model",
        )
    return given or this_machine().target or _ELSEWHERE


def _has_vllm() -> bool:
    try:
        find_environment()
    except InputError:
        return False
    return True


@contextlib.contextmanager
def _all_or_none(paths: list[Path]) -> Iterator[None]:
    """Removes files, and folders made for them, when what is done inside fails: a recipe names where its files lie."""
    made = {folder for path in paths for folder in path.parents if not folder.exists()}
    written = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):  # it was never written, or cannot be removed: the cause is what is told
                path.unlink()
        for folder in sorted(made, key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):  # somebody else put something there meanwhile
                folder.rmdir()
        raise


def _write(files: Mapping[Path, str]) -> None:
    """Writes each file, and touches none that is there."""
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written.",
                seen=f"{type(error).__name__}: {error}",
                expected="a folder, or a place where one can be made",
                remedy="name another folder, or correct its permissions",
            ) from error


def _refuse_existing(paths: list[Path]) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise OutputExistsError(
            "tunegate init overwrites nothing.",
            seen=f"{', '.join(there)} is there already",
            expected="a folder without them",
            remedy="name another folder, or move these away",
        )


def _notes(plan: Plan) -> tuple[str, ...]:
    observed, task = plan.observed, plan.task
    notes = [f"{row.where} cannot be trained on and is left out: {row.reason}" for row in observed.unusable[:5]]
    if len(observed.unusable) > 5:
        notes.append(f"… and {len(observed.unusable) - 5} more")
    others = [column for column in observed.columns if column != "text"]
    if observed.format == "text" and others:
        notes.append(
            f"the column text is trained on as it stands, and {', '.join(others)} is not: where it is an answer, "
            "rename text to prompt and it to completion"
        )
    if task is None and observed.kind != "tool_call":
        notes.append(
            "conversations of several turns are no task file: completion_perplexity judges every answer in them"
        )
    if not observed.lengths.measured:
        notes.append(f"lengths are estimated: the base is not at hand ({plan.base.absent})")
    return tuple(notes)
