"""Many exported adapters on one base: what one vLLM would serve, or why not, without vLLM and without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError, InputError, SettingsError
from tunegate.contracts.manifest import input_digest
from tunegate.contracts.settings import parse_settings, setting
from tunegate.contracts.vllm import SERVED_RANK, smallest_served
from tunegate.preflight.adapter_folder import read_adapter_folder
from tunegate.preflight.vllm_adapter import lint_adapter, refuse_adapter

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Fleet:
    """What a fleet file says. Paths in it are relative to the file."""

    base: str = setting(help="the folder of the model that every adapter is served on")
    adapters: dict[str, Any] = setting(  # noqa: RUF009
        help="alias: the folder of an adapter, as tunegate export writes it"
    )


@dataclass(frozen=True)
class PlannedAdapter:
    """An adapter of a fleet.

    Attributes:
        alias: what clients call it.
        digest: of its content; the name that it is served under.
        folder: where it lies.
        rank: the largest rank in it.
        unchecked: the rules that could not be checked, each with why.
    """

    alias: str
    digest: str
    folder: str
    rank: int
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class FleetPlan:
    """One server of a fleet: the digest of its base, its adapters, and the least room in vLLM that holds them all."""

    base: str
    adapters: tuple[PlannedAdapter, ...]
    max_loras: int
    max_lora_rank: int

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def read_fleet(path: Path) -> Fleet:
    """Reads a fleet file.

    Raises:
        SettingsError: when it cannot be read, or holds an unknown key, an unusable alias or no adapter.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"The fleet {path} cannot be read.",
            seen=f"{type(error).__name__}: {' '.join(str(error).split())}",
            expected="a YAML file with base and adapters",
            remedy="check the path, and indentation, quotes and colons in it",
        ) from error
    fleet = parse_settings(Fleet, document, where="fleet")
    wrong = [
        f"{alias!r}: {folder!r}"
        for alias, folder in fleet.adapters.items()
        if not (isinstance(alias, str) and _ALIAS.fullmatch(alias) and isinstance(folder, str) and folder)
    ]
    if wrong or not fleet.adapters:
        raise SettingsError(
            "fleet.adapters cannot be served.",
            seen=f"{len(wrong)} unusable line(s)" if wrong else "no adapter",
            expected="lines of 'alias: folder'; an alias of lower-case letters, digits, '.', '_' and '-', at most 63",
            remedy="name at least one adapter in that way",
            items=wrong,
        )
    return fleet


def plan_fleet(fleet: Fleet, *, root: Path) -> FleetPlan:
    """Verifies each adapter, asks whether vLLM loads it on the base, and computes the room for all of them.

    Args:
        fleet: what the file says.
        root: the folder that its paths are relative to.

    Raises:
        InputError: when the base or an adapter is not there or not what its manifest says.
        LintError: when vLLM refuses an adapter, or would serve it otherwise than it was trained.
    """
    base = root / fleet.base
    if not (base / "config.json").is_file():
        raise InputError(
            "The fleet's base is no model.",
            seen=f"no config.json in {base}",
            expected="the folder of a model",
            remedy="correct base in the fleet file",
        )
    adapters = tuple(_planned(alias, root / folder, base) for alias, folder in sorted(fleet.adapters.items()))
    rank = smallest_served(max(adapter.rank for adapter in adapters)) or SERVED_RANK
    return FleetPlan(input_digest(base), adapters, len({adapter.digest for adapter in adapters}), rank)


def _planned(alias: str, folder: Path, base: Path) -> PlannedAdapter:
    digest = input_digest(folder)
    verdict = lint_adapter(folder, base=base, max_lora_rank=SERVED_RANK)
    refuse_adapter(folder, verdict)
    unchecked = tuple(f"{each.rule}: {each.reason}" for each in verdict.linted.unchecked)
    return PlannedAdapter(alias, digest, str(folder), _largest_rank(folder, base), unchecked)


def _largest_rank(folder: Path, base: Path) -> int:
    config = read_adapter_folder(folder, base=base, max_lora_rank=SERVED_RANK).config
    patterns = config.get("rank_pattern") or {}
    stated = [config.get("r"), *(patterns.values() if isinstance(patterns, Mapping) else [patterns])]
    ranks = [rank for rank in stated if type(rank) is int]
    if len(ranks) != len(stated):
        raise AdapterError(
            f"The ranks of the adapter in {folder} are unknown.",
            seen=f"r and rank_pattern: {stated}",
            expected="whole numbers",
            remedy="make it again with tunegate export",
        )
    return max(ranks)
