"""Submits a recipe to a KFP cluster: checked, compiled, uploaded as a version, started."""

from __future__ import annotations

import datetime
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate_pipelines.cluster import read_cluster
from tunegate_pipelines.kfp_server import KfpServer, connect
from tunegate_pipelines.recipe import read_recipe
from tunegate_pipelines.submission import Submission, prepare_submission, tasks_of

#: The pipelines that take a recipe.
OF_RECIPES = ("finetune", "retrain")


@dataclass(frozen=True)
class Started:
    """A run that was started.

    Attributes:
        server: where.
        run_id: KFP's id of it.
        name: what it is called.
        submission: what was sent.
        ids: of the pipeline and its version.
        tasks: how many tasks it may run.
    """

    server: KfpServer
    run_id: str
    name: str
    submission: Submission
    ids: tuple[str, str]
    tasks: int

    def told(self) -> list[str]:
        """For a person: warnings, where steps run, and the link."""
        lines = [f"{one.severity} {one.rule}: {one.seen}; {one.remedy}" for one in self.submission.linted.findings]
        lines += placement_lines(self.submission)
        return [*lines, f"run       {self.name}", f"page      {self.server.link(self.run_id)}"]

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "run": self.run_id,
            "name": self.name,
            "pipeline": self.submission.pipeline,
            "pipeline_id": self.ids[0],
            "version": self.submission.version,
            "version_id": self.ids[1],
            "link": self.server.link(self.run_id),
            "placements": {
                step: {"gpu": place.gpu, "accelerators": place.accelerators, "why": place.why}
                for step, place in self.submission.placements.items()
                if place.accelerators
            },
            "findings": [one.rule for one in self.submission.linted.findings],
        }


def checked_pipeline(name: str) -> str:
    """``name``, when a recipe can be submitted to it.

    Raises:
        InputError: for another one.
    """
    if name not in OF_RECIPES:
        raise InputError(
            f"A recipe cannot be submitted to {name!r}.",
            seen=repr(name),
            expected=f"one of {', '.join(OF_RECIPES)}",
            remedy="choose one of them; approve and promote are started in KFP's UI, or with tunegate approve",
        )
    return name


def server_of(cluster: Path) -> KfpServer:
    """The KFP of a cluster file."""
    return connect(read_cluster(cluster), os.environ)


def submitted(
    recipe: Path, overrides: Sequence[str], cluster: Path, *, pipeline: str, model: str, name: str
) -> Started:
    """Submits a recipe and returns the run.

    Args:
        recipe: the recipe file.
        overrides: laid over it.
        cluster: the cluster file.
        pipeline: one of :data:`OF_RECIPES`.
        model: see :func:`~tunegate_pipelines.submission.prepare_submission`.
        name: what the run is called; empty: recipe and time.

    Raises:
        InputError: for anything that cannot be used; nothing was sent then, or KFP refused it.
        RunError: when KFP cannot answer.
    """
    there = read_cluster(cluster)
    called = name or f"{recipe.stem} {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} {secrets.token_hex(2)}"
    read = read_recipe(recipe, overrides)
    submission = prepare_submission(read, there, pipeline=pipeline, model=model, name=called)
    server = connect(there, os.environ)
    ids = uploaded(server, submission)
    experiment = server.experiment_id(there.experiment)
    run_id = server.start(called, experiment_id=experiment, ids=ids, parameters=submission.parameters, cluster=there)
    return Started(server, run_id, called, submission, ids, tasks_of(submission.document))


def uploaded(server: KfpServer, submission: Submission) -> tuple[str, str]:
    """Uploads a submission's document, where its version is not there yet; the ids of pipeline and version."""
    with tempfile.TemporaryDirectory(prefix="tunegate-") as folder:
        path = Path(folder) / f"{submission.pipeline}.yaml"
        path.write_text(submission.document, "utf-8")
        return server.upload(
            path,
            pipeline=f"tunegate-{submission.pipeline}",
            version=submission.version,
            description="compiled by tunegate",
        )


def placement_lines(submission: Submission) -> list[str]:
    """Where each step with an accelerator runs."""
    return [
        f"{step:<9} on {place.accelerators} × {place.gpu or 'whatever there is'} ({place.why})"
        for step, place in submission.placements.items()
        if place.accelerators
    ]
