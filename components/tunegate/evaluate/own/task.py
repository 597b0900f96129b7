"""A user's task as a whole: its file, its rows and its scorer, read from wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from tunegate.contracts.errors import SettingsError, TunegateError
from tunegate.contracts.files import sha256_json
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.own.rows import OwnRow, read_own_rows
from tunegate.evaluate.own.scorer import Scorer, load_scorer
from tunegate.evaluate.own.task_file import TaskFile, parse_task_file
from tunegate.storage.open import open_storage

#: How the name of a task file ends; any other name in ``evaluate.tasks`` is a known task's.
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class OwnTask:
    """A task that can be asked.

    Attributes:
        file: what the task file says.
        rows: in the order of their ids.
        scorer: of type python; None for others.
        made_of: what it was read from: digests of task and rows, and the scorer's distribution.
    """

    file: TaskFile
    rows: tuple[OwnRow, ...]
    scorer: Scorer | None
    made_of: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The name of all that decides its results: task, rows and scorer. Where they lie and comments do not."""
        return sha256_json(dict(self.made_of))


def is_task_file(name: str) -> bool:
    """Whether an entry of ``evaluate.tasks`` is the address of a task file."""
    return name.endswith(ENDINGS)


def read_definition(address: str) -> tuple[TaskFile, tuple[OwnRow, ...]]:
    """A task file and its rows; a scorer is not looked for.

    Args:
        address: of the task file: a path, or ``gs://bucket/folder/task.yaml``; its rows lie beside or below it.

    Raises:
        SettingsError: when it cannot be read, or says something that cannot be asked.
        DataError: naming the rows that it cannot ask.
    """
    folder, slash, name = address.rpartition("/")
    folder = folder or slash  # a file at the top of the file system
    file = parse_task_file(_document(_read(folder, name), address), where=address)
    return file, read_own_rows(file, _read(folder, file.data), where=f"{folder or '.'}/{file.data}")


def defined_by(file: TaskFile, rows: Sequence[OwnRow]) -> dict[str, str]:
    """The digests of a task and its rows, wherever they lie; the scorer's own is another."""
    definition = settings_document(replace(file, data=""))
    return {"task": sha256_json(definition), "rows": sha256_json([[row.row_id, row.fields] for row in rows])}


def read_own_task(address: str) -> OwnTask:
    """A task with its rows and its scorer. See :func:`read_definition`.

    Raises:
        SettingsError: as there, and for a scorer that is not installed here.
        DataError: naming the rows that it cannot ask.
    """
    file, rows = read_definition(address)
    scorer = load_scorer(file.scorer) if file.scorer else None
    made_of = defined_by(file, rows)
    if scorer:
        made_of |= {"scorer": scorer.distribution, "scorer_sha256": scorer.sha256}
    return OwnTask(file, rows, scorer, made_of)


def _read(folder: str, name: str) -> bytes:
    where = f"{folder}/{name}" if folder else name
    try:
        blob = open_storage(folder or ".").read(name)
    except TunegateError as error:
        raise _unreadable(where, f"{error.failed} {error.seen}") from error
    if blob is None:
        raise _unreadable(where, "no such file")
    return blob.data


def _unreadable(where: str, seen: str) -> SettingsError:
    return SettingsError(
        f"{where} cannot be read.",
        seen=seen,
        expected="a task file, with its rows beside or below it: a path, or gs://bucket/folder/task.yaml",
        remedy="check the path in evaluate.tasks; on a cluster, put the folder into a bucket or on a shared volume",
    )


def _document(data: bytes, where: str) -> Any:
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{where} is no valid YAML.",
            seen=" ".join(str(error).split()),
            expected="name, type, data and prompt, one a line",
            remedy="put texts with {{ }} or a colon in quotes, and check the place named",
        ) from error
