"""A run that did not reach its end goes on in its own folder when it is started again with the same recipe."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tunegate.contracts.errors import GateRefused, OutputExistsError
from tunegate.contracts.files import pretty_json, sha256_json
from tunegate_pipelines.recipe import Recipe

SCHEMA_VERSION = 1
MARK_NAME = "unfinished.json"
LOG_NAME = "log.txt"
INPUTS_FOLDER = "inputs"
CHECKPOINTS_FOLDER = "checkpoints"
EVALUATIONS_FOLDER = "evaluations"

#: What a further attempt takes over; everything else in the folder is made anew.
_TAKEN_OVER = {MARK_NAME, LOG_NAME, INPUTS_FOLDER, CHECKPOINTS_FOLDER, EVALUATIONS_FOLDER}


def goes_on(output: Path, recipe: Recipe) -> bool:
    """Whether ``output`` holds a run of this very recipe that did not reach its end, and that nobody is running."""
    try:
        with (output / MARK_NAME).open("r+", encoding="utf-8") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            document = json.load(mark)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document == _document(recipe)


def folder_for(parent: Path, name: str, recipe: Recipe) -> Path:
    """Where a run of that name belongs: where its last attempt ended, or else a folder that does not exist."""
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    taken = list(itertools.takewhile(lambda folder: folder.exists(), (parent / candidate for candidate in numbered)))
    if taken and goes_on(taken[-1], recipe):
        return taken[-1]
    return parent / (f"{name}-{len(taken) + 1}" if taken else name)


@contextlib.contextmanager
def under_way(output: Path, recipe: Recipe) -> Iterator[None]:
    """Marks ``output`` as a run that is under way, until it was promoted or refused; any other end leaves the mark.

    Raises:
        OutputExistsError: when ``output`` is there and is no unfinished run of this recipe, or one that is running.
    """
    with _marked(output, recipe):
        for path in output.iterdir():
            if path.name not in _TAKEN_OVER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield
        except GateRefused:
            _ended(output)
            raise
        _ended(output)


@contextlib.contextmanager
def _marked(output: Path, recipe: Recipe) -> Iterator[IO[str]]:
    """The mark, locked for as long as this process lives."""
    again = goes_on(output, recipe)
    if output.exists() and not again:
        raise OutputExistsError(
            f"{output} exists.",
            seen="a folder or file",
            expected="a new folder for a new run, or that of the same recipe when it did not reach its end",
            remedy=f"choose another --output, or remove {output} yourself",
        )
    output.mkdir(parents=True, exist_ok=True)
    with (output / MARK_NAME).open("r+" if again else "x", encoding="utf-8") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not again:
            mark.write(pretty_json(_document(recipe)).decode())
            mark.flush()
        yield mark


def _ended(output: Path) -> None:
    (output / MARK_NAME).unlink(missing_ok=True)
    for folder in (CHECKPOINTS_FOLDER, EVALUATIONS_FOLDER):
        shutil.rmtree(output / folder, ignore_errors=True)


def _document(recipe: Recipe) -> dict[str, object]:
    told = json.dumps(asdict(recipe), sort_keys=True, default=str)  # as it was written: nothing is checked yet
    return {"schema_version": SCHEMA_VERSION, "recipe": sha256_json(told)}
