"""Whether a new server may have traffic: it must answer the version's probes as the evaluated model did (D3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, GateRefused, SettingsError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.progress import Progress
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags, served_dtype
from tunegate.serving.limits import limits_of_policy
from tunegate.serving.probes import PROBES_NAME, Probes, check_probes, read_probes
from tunegate.serving.process import Server

#: Folder of the serving report in a version, and the report.
_REPORT, _REPORT_NAME = "serving", "serving.json"


def probes_of(version: Path) -> Probes:
    """What the version's evaluated model answers, before anything is started.

    Args:
        version: the version's folder, verified.

    Raises:
        ArtifactError: when the version was promoted without having been served.
    """
    path = version / _REPORT / PROBES_NAME
    if not path.is_file():
        raise ArtifactError(
            f"Version {version.name[:12]} says nothing of how it answers: what serves it cannot be checked.",
            seen=f"no {_REPORT}/{PROBES_NAME}",
            expected="a version whose run was served and checked",
            remedy="run it again with serve_check.enabled: true, or serve it unchecked with --check none",
        )
    return read_probes(path)


def refuse_other_flags(version: Path, flags: ServingFlags, where: ServeEnvironment) -> None:
    """Refuses to serve otherwise than what was checked before the promotion.

    Args:
        version: the version's folder, verified.
        flags: the flags of production.
        where: the environment it is served in.

    Raises:
        SettingsError: naming each flag that is another one.
    """
    checked = _checked_flags(version)
    ours = {**dataclasses.asdict(flags), "options": " ".join(flags.options), "dtype": served_dtype(flags, where)}
    ours["enforce_eager"] = flags.enforce_eager or where.cpu
    other = [
        f"{name}: {ours[name]!r}, checked {checked.get(name)!r}" for name in ours if ours[name] != checked.get(name)
    ]
    if other:
        raise SettingsError(
            f"Version {version.name[:12]} would be served with other flags than it was checked with.",
            seen=f"{len(other)} that differ",
            expected="the section 'serving' of the recipe that it was promoted by",
            remedy="give that recipe with --recipe, or serve it unchecked with --check none",
            items=other,
        )


def _checked_flags(version: Path) -> Mapping[str, Any]:
    path = version / _REPORT / _REPORT_NAME
    try:
        found: Mapping[str, Any] = read_json_object(path)["engine"]
    except (ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} does not say with which flags the version was checked.",
            seen=f"{type(error).__name__}: {error}",
            expected="what serve_check writes",
            remedy="promote a version whose run was served and checked (serve_check.enabled)",
        ) from error
    return found


def refuse_other_answers(server: Server, probes: Probes, version: Path, *, at_once: int = 1) -> None:
    """Asks a server the probes, before it gets any traffic.

    Args:
        server: what was started.
        probes: what the evaluated model answers.
        version: the version's folder, verified.
        at_once: how many probes are under way at the same time.

    Raises:
        GateRefused: when it answers otherwise than the evaluated model, or serves another one.
        RunError: when it does not answer.
    """
    if probes.model != server.served_name:
        raise GateRefused(
            "The server serves another model than the probes are of.",
            seen=server.served_name,
            expected=probes.model,
            remedy="do not serve this version: promote another one",
        )
    limits = limits_of_policy(version / "verdict" / "policy.json")
    progress = Progress("deploy", len(probes.rows), "probes answered")
    found = check_probes(server.client, server.served_name, probes, limits, at_once=at_once, progress=progress)
    if not found.passed:
        raise GateRefused(
            f"What serves version {version.name[:12]} does not answer as what was evaluated: it gets no traffic.",
            seen=f"{len(found.reasons)} of the policy's limits on answers are not kept",
            expected="the evaluated answers, up to rounding",
            remedy=f"compare this machine and its vLLM with those of the check; the log is {server.log}",
            items=found.reasons,
        )
