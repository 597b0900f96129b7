"""The settings of promote."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class PromoteSettings:
    """Which alias moves."""

    alias: str = setting("champion", help="the alias that will point at the new version")
    note: str = setting("", help="a few words for the history")
