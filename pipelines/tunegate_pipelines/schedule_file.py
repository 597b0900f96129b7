"""A schedule file: all recurring runs of one owner. What it does not name any more, and the owner has, is removed.

::

    owner: team-a                 # recurring runs of other owners, and those made by hand, are never touched
    schedules:
      - name: nightly
        recipe: recipe.yaml       # beside this file
        cron: "0 0 2 * * *"       # six fields, seconds first; or interval_seconds
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import parse_settings, setting
from tunegate_pipelines.submit import checked_pipeline
from tunegate_pipelines.yaml_file import read_yaml_object

_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?#-]+")
_CRON_FIELDS = 6
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Schedule:
    """One recurring run."""

    name: str = setting(help="its name, once in the file")
    recipe: str = setting(help="the recipe, beside the schedule file")
    set: tuple[str, ...] = setting((), help="NAME=VALUE or STEP.NAME=VALUE, laid over the recipe")
    pipeline: str = setting("retrain", help="retrain, which skips what did not change, or finetune")
    model: str = setting("", help="a known model or a config.json for the memory plan")
    cron: str = setting("", help="when, in six fields: second minute hour day month weekday, in KFP's time zone")
    interval_seconds: int = setting(0, minimum=0, unit="seconds", help="or how long after one start comes the next")
    start: str = setting("", help="not before this time, with its time zone")
    end: str = setting("", help="not after this time, with its time zone")
    max_concurrency: int = setting(1, minimum=1, maximum=10, help="how many of its runs may go on at once")
    catch_up: bool = setting(False, help="whether each start that was missed is made up for, or the last one alone")
    enabled: bool = setting(True, help="whether it starts runs")
    lease_seconds: int = setting(
        0, minimum=0, unit="seconds", help="retrain: how long a dead run blocks the alias; 0: its steps' time-outs"
    )


@dataclass(frozen=True)
class Schedules:
    """A schedule file."""

    owner: str = setting(help="whose recurring runs these are; they are known by it in KFP")
    schedules: tuple[Mapping[str, Any], ...] = setting((), help="the recurring runs")


def read_schedules(path: Path) -> tuple[str, tuple[Schedule, ...]]:
    """The owner and the recurring runs of a schedule file.

    Raises:
        SettingsError: when it cannot be read, or a schedule cannot be meant.
    """
    found = parse_settings(Schedules, read_yaml_object(path, what="schedule file"), where="schedule file")
    if not _OWNER.fullmatch(found.owner):
        raise SettingsError(
            "The owner of a schedule file cannot be one.",
            seen=repr(found.owner),
            expected="letters, digits, '.', '_' and '-', at most 63",
            remedy="choose a name such as 'team-a', and keep it: what another name owns is not touched",
        )
    schedules = tuple(
        parse_settings(Schedule, value, where=f"schedules[{index}]") for index, value in enumerate(found.schedules)
    )
    for one in schedules:
        _check(one)
    if twice := [name for name, count in Counter(one.name for one in schedules).items() if count > 1]:
        raise SettingsError(
            "A schedule's name stands twice in the file.",
            seen=", ".join(twice),
            expected="each name once",
            remedy="rename one of them",
            items=twice,
        )
    return found.owner, schedules


def _check(one: Schedule) -> None:
    checked_pipeline(one.pipeline)
    if bool(one.cron) == bool(one.interval_seconds):
        raise SettingsError(
            f"The schedule {one.name!r} does not say when.",
            seen="cron and interval_seconds" if one.cron else "neither cron nor interval_seconds",
            expected="one of them",
            remedy='for example cron: "0 0 2 * * *" for every night at two',
        )
    fields = one.cron.split()
    if one.cron and (len(fields) != _CRON_FIELDS or not all(_CRON_FIELD.fullmatch(field) for field in fields)):
        raise SettingsError(
            f"The cron of the schedule {one.name!r} is not one of KFP's.",
            seen=repr(one.cron),
            expected="six fields: second minute hour day month weekday",
            remedy=f'put a second before it: cron: "0 {one.cron}"' if len(fields) == 5 else "for example 0 0 2 * * *",
        )
    if one.lease_seconds and one.pipeline != "retrain":
        raise SettingsError(
            f"The schedule {one.name!r} has a lease_seconds that nothing reads.",
            seen=f"pipeline {one.pipeline}",
            expected="retrain: no other pipeline holds its alias",
            remedy="leave lease_seconds out",
        )
    for what, text in (("start", one.start), ("end", one.end)):
        if text and not _is_time(text):
            raise SettingsError(
                f"The {what} of the schedule {one.name!r} is no time.",
                seen=repr(text),
                expected="a date and time with its zone",
                remedy="for example 2026-12-01T02:00:00Z",
            )


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
