"""An alias as what is served: the version that it points at, as it was checked before its promotion."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.contracts.progress import say
from tunegate.deploy.check import probes_of, refuse_other_answers, refuse_other_flags
from tunegate.deploy.settings import LocalSettings
from tunegate.deploy.source import Prepared, Wanted
from tunegate.deploy.versions import SERVED, TASK, keep_newest, version_here
from tunegate.registry.aliases import current
from tunegate.registry.settings import SigningSettings
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags, production_engine
from tunegate.serving.process import Server
from tunegate.storage.interface import Storage


@dataclass(frozen=True)
class AliasSource:
    """The version that an alias points at.

    Attributes:
        storage: the registry's.
        title: the alias, which clients call the model as well.
        kept: where versions' files are kept, each under its digest.
        settings: what is asked of a new server, and how much is kept.
        flags: the flags of production.
        signing: whose signature counts.
        where: the environment it is served in.
    """

    storage: Storage
    title: str
    kept: Path
    settings: LocalSettings
    flags: ServingFlags
    signing: SigningSettings
    where: ServeEnvironment

    def refuse_unknown(self) -> None:
        """Raises InputError when there is no such alias."""
        if current(self.storage, self.title) is None:
            raise InputError(
                f"There is no alias {self.title} in {self.storage.uri} to serve.",
                seen="no such alias",
                expected="an alias that points at a promoted version",
                remedy="promote one first, or name another alias: `tunegate registry list`",
            )

    def told(self) -> Mapping[str, Any]:
        """The registry and the alias."""
        return {"registry": self.storage.uri, "alias": self.title}

    def wanted(self) -> Wanted | None:
        """The version the alias points at; each of its records is a decision of its own."""
        record = current(self.storage, self.title)
        return None if record is None else Wanted(record.version, record.digest)

    def prepare(self, target: str, cancelled: threading.Event) -> Prepared:
        """Fetches and verifies the version, its signature and its verdict."""
        say(TASK, f"{self.title} points at {target[:12]}: fetching and verifying")
        folder = version_here(self.storage, target, self.kept, self.signing)
        engine = production_engine(self.flags, folder / SERVED, self.where)
        engine = dataclasses.replace(engine, further_names=(self.title,))
        if self.settings.check == "none":
            return Prepared(engine, _unchecked)
        probes = probes_of(folder)
        refuse_other_flags(folder, self.flags, self.where)
        at_once = self.settings.probes_at_once
        return Prepared(engine, lambda server: refuse_other_answers(server, probes, folder, at_once=at_once))

    def keep(self, target: str) -> None:
        """Removes the files of versions that were served long ago."""
        os.utime(self.kept / target)  # the newest is what was served last
        keep_newest(self.kept, self.settings.kept_versions, serving=target)


def _unchecked(_: Server) -> None:
    """Asks nothing: ``check: none``."""
