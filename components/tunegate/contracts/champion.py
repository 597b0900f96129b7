"""What an alias pointed at when a run asked: the champion that its model is compared with, or that there is none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import pretty_json

SCHEMA_VERSION = 1
CHAMPION_NAME = "champion.json"
KIND = "champion"

#: How a policy calls a champion's model → the part of its version.
CHAMPION_ROLES: Mapping[str, str] = {"champion": "merged", "champion_quantized": "quantized"}


@dataclass(frozen=True)
class Champion:
    """A champion as it was found.

    Attributes:
        alias: whose champion.
        registry: where it was looked up.
        record: digest of the record that the alias pointed at; None when there is no such alias yet.
        generation: of the alias; without a record 0, or more where only its generation was moved.
        version: the version it pointed at; None when there is none.
        models: role → content digest of the model, for each that was asked for.
        evaluations: role → ``stored`` or ``made anew``: where its evaluation, in the folder of that name, comes from.
        asked: the roles that were asked for.
    """

    alias: str
    registry: str
    record: str | None
    generation: int
    version: str | None
    models: Mapping[str, str]
    evaluations: Mapping[str, str]
    asked: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        """Writes ``champion.json`` into ``folder``."""
        (folder / CHAMPION_NAME).write_bytes(pretty_json(dataclasses.asdict(self)))


def read_champion(folder: Path) -> Champion:
    """Reads ``champion.json`` from a champion artifact.

    Raises:
        ArtifactError: when it is absent or malformed, or names a version without a record, or no version with one: what
            cannot be read is not the same as no champion.
    """
    path = folder / CHAMPION_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        champion = Champion(**{**document, "asked": tuple(document["asked"])})
        contradicts = (champion.record is None) != (champion.version is None)
        contradicts |= champion.record is not None and champion.generation == 0
        if champion.schema_version != SCHEMA_VERSION or contradicts:
            raise ValueError(
                f"schema version {champion.schema_version}, record {champion.record}, version {champion.version}, "
                f"generation {champion.generation}"
            )
        for what, roles in (("asked for", champion.asked), ("evaluation of", champion.evaluations)):
            if foreign := sorted(
                set(roles) - set(CHAMPION_ROLES)
            ):  # one called merged would stand in for the run's own
                raise ValueError(f"{what} {', '.join(foreign)}, which is no champion")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a champion.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a champion of schema version {SCHEMA_VERSION}",
            remedy="run evaluate_champion again",
        ) from error
    return champion
