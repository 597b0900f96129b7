"""What is sent to KFP: a compiled document and the run form, checked here before anything leaves this machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunegate.contracts.errors import InputError, ModelError, SettingsError
from tunegate.contracts.images import TAG
from tunegate.evaluate.own.task import is_task_file
from tunegate.preflight.lint import Linted, refuse
from tunegate_pipelines.cluster import Cluster
from tunegate_pipelines.compile import compile_pipeline
from tunegate_pipelines.form import ADDRESSES, FORM
from tunegate_pipelines.image_digests import read_digests
from tunegate_pipelines.kfp_server import read_token
from tunegate_pipelines.lint_recipe import lint_recipe
from tunegate_pipelines.own_tasks import check_own_tasks
from tunegate_pipelines.pinned_inputs import refuse_unpinned
from tunegate_pipelines.placement import KFP, Planned, platform
from tunegate_pipelines.plan import model_config
from tunegate_pipelines.platform_settings import Placement, Platform
from tunegate_pipelines.recipe import Recipe, Sections, check_destination, resolve
from tunegate_pipelines.resources import claimed_seconds
from tunegate_pipelines.secret_guard import refuse_secrets

REQUIRED = ("base_model", "dataset", "registry")


@dataclass(frozen=True)
class Submission:
    """What is sent.

    Attributes:
        pipeline: its name.
        document: the compiled pipeline, as text.
        parameters: the run form, with the recipe's sections.
        linted: what the lint said of them.
        placements: step → what it is given.
    """

    pipeline: str
    document: str
    parameters: Mapping[str, Any]
    linted: Linted
    placements: Mapping[str, Placement]

    @property
    def version(self) -> str:
        """What the pipeline's version is called in KFP: the same document has the same name."""
        return f"{TAG}-{hashlib.sha256(self.document.encode()).hexdigest()[:12]}"


def prepare_submission(
    recipe: Recipe,
    cluster: Cluster,
    *,
    pipeline: str = "finetune",
    model: str = "",
    extra: Mapping[str, Any] | None = None,
    name: str = "",
) -> Submission:
    """Checks a recipe for a cluster, places its steps and compiles the pipeline. Nothing is sent.

    Args:
        recipe: what to run.
        cluster: where.
        pipeline: ``finetune`` or ``retrain``.
        model: a known model or a ``config.json``, for the memory plan, where the base model is not on this machine.
        extra: further parameters of the pipeline.
        name: what the run, or the recurring run, will be called.

    Raises:
        InputError: for a recipe or cluster that cannot be used, an input that is not pinned, a step that fits no
            accelerator, or a secret that would be sent.
    """
    refuse_unpinned({name: str(recipe.form.get(name, "")) for name in ADDRESSES})
    _refuse_incomplete(recipe)
    sections = resolve({name: value for name, value in recipe.form.items() if name in FORM}, recipe.sections)
    check_destination(sections, recipe.form["registry"])
    _check_task_files(sections)
    linted = lint_recipe(sections, base_model=recipe.form["base_model"], dataset=recipe.form["dataset"])
    refuse(linted)
    made = platform(cluster, planned(recipe, sections, model), target=KFP)
    document = compiled_document(pipeline, cluster, made)
    parameters = {**_parameters(recipe, sections), **(extra or {})}
    if pipeline == "retrain":
        parameters["lease_seconds"] = _lease_seconds(made, int(parameters.get("lease_seconds", 0)))
    refuse_known_secrets({**named_parts(document), "the run form": parameters, "its name": name}, cluster, sections)
    return Submission(pipeline, document, parameters, linted, made.placements)


def refuse_known_secrets(
    sent: Mapping[str, Any], cluster: Cluster, sections: Mapping[str, Mapping[str, Any]] | None
) -> None:
    """Refuses what holds the value of a secret that a cluster file or a recipe names. See :func:`refuse_secrets`."""
    variables = [secret.env for secret in cluster.secret_references()] + [cluster.token_env]
    if sections is not None:
        variables += [sections["approve"]["token_env"], sections["approve"]["webhook_url_env"]]
        variables += [sections["signing"]["password_env"]]
    environment = dict(os.environ)
    if cluster.token_file and (sections is not None or Path(cluster.token_file).expanduser().is_file()):
        environment["token_file"] = read_token(cluster.token_file)
    refuse_secrets(sent, [*variables, "token_file"], environment)


def named_parts(document: str) -> dict[str, Any]:
    """A compiled pipeline as what it means, for a look at all that it holds."""
    return {"the compiled pipeline": list(yaml.safe_load_all(document))}


def compiled_document(pipeline: str, cluster: Cluster, made: Platform) -> str:
    """The pipeline, compiled for a platform, with the cluster's images."""
    digests = read_digests(Path(cluster.image_digests)) if cluster.image_digests else None
    with tempfile.TemporaryDirectory(prefix="tunegate-") as folder:
        path = Path(folder) / f"{pipeline}.yaml"
        compile_pipeline(pipeline, path, image_prefix=cluster.image_prefix, digests=digests, platform=made)
        return path.read_text("utf-8")


def planned(recipe: Recipe, sections: Sections, model: str = "") -> Planned:
    """What is known of a run before it starts; a base model that lies elsewhere is not planned, unless it is named.

    Raises:
        ModelError: for a ``model`` that is none.
    """
    if model:
        return Planned(sections, model_config(model))
    base = str(recipe.form.get("base_model", ""))
    if not Path(base).is_dir():
        return Planned(sections, None, f"{base} is not on this machine; --model names its shapes")
    try:
        return Planned(sections, model_config(base))
    except ModelError as error:
        return Planned(sections, None, error.failed)


def tasks_of(document: str) -> int:
    """How many tasks a compiled pipeline may run: groups do not count, and branches that are not taken do."""
    spec = next(iter(yaml.safe_load_all(document)))
    levels = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    groups = {name for name, part in spec["components"].items() if "dag" in part}
    tasks = [task for level in levels for task in level["tasks"].values()]
    return sum(1 for task in tasks if task["componentRef"]["name"] not in groups)


def _refuse_incomplete(recipe: Recipe) -> None:
    wrong = [name for name in REQUIRED if not recipe.form.get(name)]
    wrong += [name for name in ADDRESSES if not isinstance(recipe.form.get(name, ""), str)]
    if wrong:
        raise SettingsError(
            "recipe.run is incomplete.",
            seen=f"no {', '.join(wrong)}",
            expected=f"at least {', '.join(REQUIRED)}, as text",
            remedy="add them to the section 'run', or give them with --set NAME=VALUE",
        )


def _check_task_files(sections: Sections) -> None:
    """Task files lie on a volume of the cluster: those that this machine sees as well are read.

    Raises:
        InputError: for a path that only this machine knows, or a file that cannot be used.
    """
    files = [name for name in sections["evaluate"]["tasks"] if is_task_file(name)]
    if relative := [name for name in files if not name.startswith(("/", "gs://"))]:
        raise InputError(
            "A task file is named by a path that pods do not know.",
            seen=", ".join(relative),
            expected="an absolute path on a volume of the cluster, or gs://bucket/folder/task.yaml",
            remedy="copy the task and its rows there, and name it by that path",
            items=relative,
        )
    if all(Path(name).is_file() for name in files):
        check_own_tasks(sections)


def _lease_seconds(made: Platform, given: int) -> int:
    """How long a retraining claims its alias: as long as its steps may take, or what is given, when that is longer.

    Raises:
        SettingsError: when the claim would run out while a step is still allowed to go on: the next would overtake it.
    """
    needed = claimed_seconds({step: place.timeout_seconds for step, place in made.placements.items()})
    if given and given < needed:
        raise SettingsError(
            "lease_seconds is shorter than the run may take: one that still goes on would be overtaken.",
            seen=f"{given} s",
            expected=f"at least {needed} s, the time-outs of its steps one after another",
            remedy="leave lease_seconds out, or shorten steps.STEP.timeout_seconds of the cluster file, train's first",
        )
    return given or needed


def _parameters(recipe: Recipe, sections: Sections) -> dict[str, Any]:
    """The run form as the settings parsed it: KFP tells whole numbers from others, and 1 epoch is 1.0."""
    form = {name: sections[step][setting] for name, ((step, setting), *_) in FORM.items() if name in recipe.form}
    addresses = {name: recipe.form[name] for name in ADDRESSES if recipe.form.get(name)}
    return {**addresses, **form, "recipe": dict(recipe.sections)}
