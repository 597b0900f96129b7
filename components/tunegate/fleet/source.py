"""A fleet file as what is served: read again and again, and each set of adapters started beside the one before.

No adapter is ever loaded into a server that runs, under a used name or a new one: what answers under a digest is what
was loaded under it before the first request.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, GateRefused
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.contracts.progress import Progress, say
from tunegate.deploy.settings import LocalSettings
from tunegate.deploy.source import Prepared, Wanted
from tunegate.deploy.versions import TASK, keep_newest
from tunegate.fleet.build import KIND, PROBES, BuiltFleet, read_built, refuse_other_fleet
from tunegate.fleet.child import build_in_child
from tunegate.fleet.engine import fleet_engine
from tunegate.fleet.file import read_fleet
from tunegate.fleet.resolve import Digests, Resolved, resolve
from tunegate.registry.settings import SigningSettings
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags, served_dtype
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import check_probes, read_probes
from tunegate.serving.process import Server
from tunegate.storage.open import open_storage


class FleetSource:
    """The adapters that a fleet file names.

    Args:
        path: the file; it may change at any time.
        kept: where built fleets are kept, each under its digest.
        settings: what is asked of a new server, and how much is kept.
        flags: the flags of production.
        signing: whose signature on a version counts.
        where: the environment it is served in.

    Attributes:
        title: the file's name.
    """

    def __init__(
        self,
        path: Path,
        kept: Path,
        settings: LocalSettings,
        flags: ServingFlags,
        signing: SigningSettings,
        where: ServeEnvironment,
    ) -> None:
        self.title = path.name
        self._path, self._kept, self._settings = path, kept, settings
        self._flags, self._signing, self._where = flags, signing, where
        self._digests = Digests()
        self._resolved: dict[str, Resolved] = {}

    def told(self) -> Mapping[str, Any]:
        """The file."""
        return {"fleet": str(self._path.absolute())}

    def wanted(self) -> Wanted | None:
        """The fleet as digests. One that was refused is tried again when any of them is another one."""
        fleet = read_fleet(self._path)
        storage = open_storage(fleet.registry) if fleet.registry else None
        dtype = served_dtype(self._flags, self._where)
        check = self._settings.check != "none"
        resolved = resolve(fleet, self._digests, storage, dtype=dtype, signing=self._signing, check=check)
        self._resolved[resolved.digest] = resolved
        return Wanted(resolved.digest, resolved.digest)

    def prepare(self, target: str, cancelled: threading.Event) -> Prepared:
        """Builds the fleet, or verifies the one that was built before."""
        resolved = self._resolved[target]
        folder = self._kept / target
        if not _is_whole(folder, resolved):
            log = self._kept / f"{target[:12]}.log"
            say(TASK, f"{self.title}: building {target[:12]} of {len(resolved.members)} adapters, log {log}")
            build_in_child(resolved, self._signing, folder, log=log, cancelled=cancelled)
        built = read_built(folder)
        engine = fleet_engine(folder, built, Path(resolved.base), self._flags, self._where)
        names = {each.alias: each.served for each in built.adapters}
        return Prepared(engine, lambda server: self._check(server, folder, built), names)

    def keep(self, target: str) -> None:
        """Removes fleets that were served long ago."""
        os.utime(self._kept / target)  # the newest is what was served last
        keep_newest(self._kept, self._settings.kept_versions, serving=target)

    def _check(self, server: Server, folder: Path, built: BuiltFleet) -> None:
        """Asks every adapter what its PEFT model answered; that also warms each before the first request."""
        other = {built.base: server.served_name, **{each.served: each.served for each in built.adapters}}
        if any(server.digests.get(name) != digest for digest, name in other.items()):
            raise GateRefused(
                "What is served is not what was built.",
                seen=", ".join(server.digests.values()),
                expected=", ".join(other),
                remedy="let nothing write to the base and to what was built; the fleet is built again when it changes",
            )
        if self._settings.check == "none":
            return
        asked = [(each, read_probes(folder / PROBES / f"{each.alias}.json")) for each in built.adapters]
        progress = Progress(TASK, sum(len(probes.rows) for _, probes in asked), "probes answered")
        wrong = []
        for each, probes in asked:
            limits = AnswerLimits(**each.limits)
            found = check_probes(
                server.client, each.served, probes, limits, at_once=self._settings.probes_at_once, progress=progress
            )
            wrong += [f"{each.alias}: {reason}" for reason in found.reasons]
        if wrong:
            raise GateRefused(
                "Adapters of the fleet do not answer as their PEFT models do: none of it gets traffic.",
                seen=f"{len(wrong)} of the limits on answers are not kept",
                expected="PEFT's answers, up to rounding",
                remedy=f"compare this machine and its vLLM with where they were trained; the log is {server.log}",
                items=wrong,
            )


def _is_whole(folder: Path, resolved: Resolved) -> bool:
    """Whether this fleet was built; one that was changed since, or is another, is removed and built again."""
    if not (folder / MANIFEST_NAME).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return False
    try:
        verify(folder, kind=KIND)
        refuse_other_fleet(folder, resolved)
    except ArtifactError as error:
        say(TASK, f"what was built in {folder} is not what it was and is built again: {error}")
        shutil.rmtree(folder)
        return False
    return True
