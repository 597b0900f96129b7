"""A fleet file: which adapters answer on one base, and how each is held against its own PEFT model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import parse_settings, setting
from tunegate.serving.limits import AnswerLimits

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ProbeSettings:
    """What each adapter is asked before it gets a request."""

    rows: int = setting(8, unit="rows", minimum=1, help="prompts of each adapter")
    max_new_tokens: int = setting(32, unit="tokens", minimum=1, help="where an answer is cut")
    batch_size: int = setting(
        4, unit="rows", minimum=2, help="rows that the PEFT model computes together; the noise floor is that, row by "
        "row, and with last bits moved",
    )  # fmt: skip
    noise_runs: int = setting(
        3, unit="runs", minimum=1, help="how often the PEFT model is computed with its last bits moved at random"
    )


@dataclass(frozen=True)
class _Document:
    """The file as it is written. Paths in it are relative to it."""

    base: str = setting(help="the folder of the model that every adapter is served on")
    adapters: dict[str, Any] = setting(  # noqa: RUF009
        help="alias: the folder of an adapter; or alias: {follows: an alias of the registry}"
    )
    registry: str = setting("", help="the registry whose aliases are followed: a folder or URI")
    dataset: str = setting("", help="what prepare wrote: its validation rows are the prompts of the probes")
    probes: dict[str, Any] = setting(  # noqa: RUF009
        default_factory=dict, help="what each adapter is asked before it gets a request"
    )
    limits: dict[str, Any] = setting(  # noqa: RUF009
        default_factory=dict, help="how closely it must answer as its PEFT model, where no policy says so"
    )


@dataclass(frozen=True)
class _Written:
    """An adapter as it is written, where more is said than its folder."""

    folder: str = setting("", help="the folder of an adapter, as train, export or PEFT writes it")
    follows: str = setting("", help="an alias of the registry: the adapter of the version that it points at")
    dataset: str = setting("", help="the prompts of this adapter")


@dataclass(frozen=True)
class Entry:
    """An adapter of a fleet file.

    Attributes:
        alias: what clients call it.
        folder: where it lies; None when it follows the registry.
        follows: the alias that it follows.
        dataset: where its prompts are; None: those that the version was asked with.
    """

    alias: str
    folder: Path | None
    follows: str
    dataset: Path | None


@dataclass(frozen=True)
class Fleet:
    """What a fleet file says.

    Attributes:
        base: the folder of the model.
        entries: the adapters by their aliases, at least one.
        registry: a folder or URI; empty when nothing is followed.
        probes: what each adapter is asked.
        limits: of adapters that no policy speaks of.
    """

    base: Path
    entries: tuple[Entry, ...]
    registry: str
    probes: ProbeSettings
    limits: AnswerLimits


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
    written = parse_settings(_Document, document, where="fleet")
    root = path.absolute().parent
    dataset = root / written.dataset if written.dataset else None
    _refuse_unusable(written.adapters)
    entries = [_entry(alias, found, root, dataset) for alias, found in sorted(written.adapters.items())]
    following = [entry.alias for entry in entries if entry.follows]
    if following and not written.registry:
        raise SettingsError(
            "The fleet follows aliases and names no registry.",
            seen=f"{', '.join(following)} with 'follows'",
            expected="registry: the folder or URI that holds these aliases",
            remedy="add registry to the fleet file",
        )
    return Fleet(
        base=root / written.base,
        entries=tuple(entries),
        registry=written.registry
        if "://" in written.registry or not written.registry
        else str(root / written.registry),
        probes=parse_settings(ProbeSettings, written.probes, where="fleet.probes"),
        limits=parse_settings(AnswerLimits, written.limits, where="fleet.limits"),
    )


def _refuse_unusable(adapters: Mapping[str, Any]) -> None:
    wrong = [
        f"{alias!r}: {found!r}"
        for alias, found in adapters.items()
        if not (isinstance(alias, str) and _ALIAS.fullmatch(alias) and found and isinstance(found, str | dict))
    ]
    if wrong or not adapters:
        raise SettingsError(
            "fleet.adapters cannot be served.",
            seen=f"{len(wrong)} unusable line(s)" if wrong else "no adapter",
            expected="lines of 'alias: folder' or 'alias: {follows: …}'; an alias of lower-case letters, digits, '.', "
            "'_' and '-', at most 63",
            remedy="name at least one adapter in that way",
            items=wrong,
        )


def _entry(alias: str, found: str | dict[str, Any], root: Path, dataset: Path | None) -> Entry:
    where = f"fleet.adapters.{alias}"
    written = _Written(folder=found) if isinstance(found, str) else parse_settings(_Written, found, where=where)
    if bool(written.folder) == bool(written.follows):
        raise SettingsError(
            f"{where} says not from where the adapter comes, or says it twice.",
            seen=f"folder {written.folder!r} and follows {written.follows!r}",
            expected="one of both",
            remedy="give the adapter's folder, or the alias of the registry that it follows",
        )
    return Entry(
        alias=alias,
        folder=root / written.folder if written.folder else None,
        follows=written.follows,
        dataset=root / written.dataset if written.dataset else dataset,
    )
