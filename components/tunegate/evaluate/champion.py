"""The champion on this run's rows: what the alias points at, evaluated as this run's models are.

An evaluation that the champion's version holds is taken when all that decides it is the same: the model, the rows, the
tasks, the settings, the tools and the engine. Otherwise its models are fetched, verified and evaluated.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.champion import CHAMPION_ROLES, KIND, Champion
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run as evaluate
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.registry.aliases import read_current
from tunegate.registry.versions import fetch_part, show_version
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

STEP = "evaluate"
STORED, MADE_ANEW = "stored", "made anew"
_MODEL = "model"


def asked_roles(policy: Mapping[str, Any]) -> tuple[str, ...]:
    """The champion's models that a policy compares with; the policy itself is checked before any step runs."""
    references = {check.get("reference") for check in policy.get("checks", ()) if isinstance(check, Mapping)}
    return tuple(role for role in CHAMPION_ROLES if role in references)


def run_champion(
    settings: EvaluateSettings,
    *,
    roles: Sequence[str],
    registry: str,
    alias: str,
    dataset: Path,
    like: Path,
    output: Path,
    reuse: Path | None = None,
    api_key: str = "",
) -> Manifest:
    """Evaluates what ``alias`` points at, or records that it points at nothing.

    Args:
        settings: as for this run's models.
        roles: of :data:`~tunegate.contracts.champion.CHAMPION_ROLES`, those that the policy compares with.
        registry: a folder or URI.
        alias: whose champion.
        dataset: what prepare made.
        like: an evaluation of this run: a stored one is taken when it differs from this in the model alone.
        output: where the ``champion`` artifact goes: ``champion.json`` and an evaluation in a folder for each role.
        reuse, api_key: as in :func:`tunegate.evaluate.step.run`.

    Raises:
        InputError: when the registry does not exist: that is not the same as an alias that does not.
        ArtifactError: when alias, version or a part of it is not what its digest says.
    """
    storage = open_storage(registry)
    storage.refuse_absent()
    pointer, record = read_current(storage, alias)
    standard = verify(like, kind="evaluation")
    parents = {"like": standard.content_digest, "dataset": verify(dataset, kind="dataset").content_digest}
    found = {"registry": storage.uri, "alias": alias, "record": pointer.record, "roles": list(roles)}
    document = {**settings_document(settings), **found}
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    version = record.version if record else None
    say(STEP, f"champion: {alias} → {version[:12] if version else 'nothing yet'}" + ("" if roles else ": not compared"))

    def build(folder: Path) -> None:
        models: dict[str, str] = {}
        sources: dict[str, str] = {}
        for role in roles if version else ():
            assert version is not None
            models[role] = show_version(storage, version).parents[CHAMPION_ROLES[role]]
            stored = _take_stored(storage, version, role, models[role], like, standard, folder / role)
            sources[role] = STORED if stored else MADE_ANEW
            if not stored:
                given = {"dataset": dataset, "output": folder / role, "reuse": reuse, "api_key": api_key}
                _evaluate_anew(settings, storage, version, role, given)
        champion = Champion(
            alias, storage.uri, pointer.record, pointer.generation, version, models, sources, tuple(roles)
        )
        _write(folder, champion)

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _take_stored(
    storage: Storage, version: str, role: str, model: str, like: Path, standard: Manifest, target: Path
) -> bool:
    """Copies the evaluation that the version holds, when it is of this model and otherwise as ``like``."""
    part = f"evaluations/{CHAMPION_ROLES[role]}"
    if part not in show_version(storage, version).parents:
        return False
    with tempfile.TemporaryDirectory(prefix="tunegate-champion-") as scratch:
        folder = Path(scratch) / "evaluation"
        stored = fetch_part(storage, version, part, folder)
        differs = _differences(stored, standard, model) or ([] if _engine(folder) == _engine(like) else ["engine"])
        if differs:
            say(STEP, f"{role}: evaluated again, for {', '.join(differs)} differs from when it was promoted")
            return False
        shutil.copytree(folder, target)
    say(STEP, f"{role}: its stored evaluation is of the same rows, asked in the same way")
    return True


def _differences(stored: Manifest, standard: Manifest, model: str) -> list[str]:
    """What decides an evaluation and is not the same."""
    parents = {**standard.parents, _MODEL: model}
    differs = sorted(n for n in parents.keys() | stored.parents.keys() if stored.parents.get(n) != parents.get(n))
    differs += [] if stored.settings == standard.settings else ["settings"]
    return differs + ([] if stored.tools == standard.tools else ["tools"])


def _engine(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text("utf-8")).get("engine")


def _evaluate_anew(
    settings: EvaluateSettings,
    storage: Storage,
    version: str,
    role: str,
    given: Mapping[str, Any],
) -> None:
    """Fetches a model of the version and evaluates it.

    Args:
        given: what :func:`tunegate.evaluate.step.run` is told beside settings and model.
    """
    part = CHAMPION_ROLES[role]
    with tempfile.TemporaryDirectory(prefix="tunegate-champion-") as scratch:
        say(STEP, f"{role}: fetching {part} of {version[:12]}")
        fetch_part(storage, version, part, Path(scratch) / part)
        evaluate(settings, model=Path(scratch) / part, **given)


def _write(folder: Path, champion: Champion) -> None:
    champion.write(folder)
    summary = {
        "alias": champion.alias,
        "version": champion.version or "none yet",
        "compared": len(champion.evaluations),
    }
    (folder / "summary.json").write_bytes(pretty_json(summary))
    told = {"alias": champion.alias, "version": champion.version or "none", "generation": champion.generation}
    if champion.version is None:
        body = paragraph("There is no champion yet: the alias points at nothing, so there is nothing to compare with.")
    elif not champion.asked:
        body = paragraph("The policy compares nothing with the champion.")
    else:
        rows = [(role, source, champion.models[role]) for role, source in champion.evaluations.items()]
        body = table(("model", "evaluation", "content digest"), rows)
    note = "A stored evaluation is taken when model, rows, tasks, settings, tools and engine are all the same."
    html = page("Champion", [Section("What the alias points at", facts(told) + body, note)], subtitle=champion.registry)
    (folder / "page.html").write_text(html, "utf-8")
