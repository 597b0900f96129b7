"""The one vLLM that serves a fleet that was built: its base, and every adapter under the digest of its bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tunegate.fleet.build import ADAPTERS, BuiltFleet
from tunegate.serving.engine import Engine
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags, production_engine


def fleet_engine(folder: Path, built: BuiltFleet, base: Path, flags: ServingFlags, where: ServeEnvironment) -> Engine:
    """The engine of a fleet.

    Args:
        folder: the artifact that was built.
        built: its ``fleet.json``.
        base: the base's folder.
        flags: the flags of production.
        where: the environment it is served in.
    """
    return dataclasses.replace(
        production_engine(flags, base, where),
        lora_modules={each.served: folder / ADAPTERS / each.served for each in built.adapters},
        max_loras=built.max_loras,
        max_lora_rank=built.max_lora_rank,
    )
