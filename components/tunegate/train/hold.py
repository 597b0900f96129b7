"""What is kept in memory while training, where the settings leave it to the memory plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.settings import settings_document
from tunegate.preflight.memory import choose
from tunegate.train.settings import TrainSettings

PROFILE_NAME = "profile.json"

#: What a container may hold, where the kernel says so (control groups, version 2 and 1).
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Held:
    """What was decided.

    Attributes:
        gradient_checkpointing: whether activations are computed twice rather than kept.
        optim: transformers' name of the optimizer.
        reason: why, in one sentence; it speaks of this machine.
    """

    gradient_checkpointing: bool
    optim: str
    reason: str


def decide(settings: TrainSettings, config: Mapping[str, Any], longest_row: int, *, device: str) -> Held:
    """Keeps activations and a plain AdamW where the memory plan says that they fit this machine.

    Args:
        settings: what is set in them stays.
        config: the base's ``config.json``.
        longest_row: tokens of the longest training row.
        device: ``cuda`` or ``cpu``.

    Returns:
        The cheapest way that fits. For a model that cannot be planned, activations are computed twice.
    """
    tokens = settings.per_device_train_batch_size * min(longest_row, settings.max_length)
    try:
        found = choose(
            config, settings_document(settings), device=device, available_bytes=memory_bytes(device), tokens=tokens
        )
    except InputError as error:
        asked = settings.gradient_checkpointing
        optim = "adamw_torch_fused" if settings.optim == "auto" else settings.optim
        return Held(True if asked is None else asked, optim, f"no memory plan: {error.failed}")
    return Held(found.gradient_checkpointing, found.optim, f"memory plan: {found.reason}")


def longest_row(dataset: Path) -> int:
    """Tokens of the longest training row, as ``prepare`` counted them."""
    return int(read_json_object(dataset / PROFILE_NAME)["tokens"]["train"]["longest"])


def memory_bytes(device: str) -> int:
    """All the memory of the GPU, or what this process may hold of the machine's."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stated = [path.read_text("ascii").strip() for path in _LIMITS if path.is_file()]
    return min([machine, *(int(text) for text in stated if text.isdigit())])
