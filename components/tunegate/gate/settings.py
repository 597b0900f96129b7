"""The gate's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class GateSettings:
    """What the gate judges by, and how much of it is shown."""

    policy: Mapping[str, Any] = setting(help="the policy as a mapping; see the README of this step")
    rows_shown: int = setting(12, help="rows that each check shows side by side on the page", unit="rows", minimum=0)
