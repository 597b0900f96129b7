"""The base model of a first recipe: what can be told of it without loading a weight, or fetching it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.models.files import HUB_NAME, check_model_folder
from tunegate.models.load import load_tokenizer
from tunegate.preflight.known_models import known_config
from tunegate.preflight.model_shape import model_shape
from tunegate.preflight.rules.data import known_positions

_DEMO, _DEMO_SHAPE = "demo", "smollm2-135m"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        address: as a recipe names it.
        positions: how many tokens it knows; 0 where that is not at hand.
        parameters: how many it has; 0 likewise.
        tokenizer: its own; None where it is not at hand.
        absent: why something is not at hand; empty where all is.
    """

    address: str
    positions: int
    parameters: int
    tokenizer: Any | None
    absent: str


def read_base(address: str) -> Base:
    """Looks at a base model; one in a hub is not fetched.

    Args:
        address: a folder, ``org/name@commit`` of a hub, or ``demo``.

    Raises:
        ModelError: for a folder that cannot be used, or a hub name without a commit.
    """
    if address == _DEMO:
        config = known_config(_DEMO_SHAPE)
        return Base(address, known_positions(config), _parameters(config), None, "it is made when the run starts")
    folder = Path(address).expanduser()
    if folder.is_dir():
        config = check_model_folder(folder)
        return Base(address, known_positions(config), _parameters(config), load_tokenizer(folder), "")
    name, _, revision = address.partition("@")
    if not HUB_NAME.match(address) or not _COMMIT.fullmatch(revision):
        raise ModelError(
            f"The base model {address!r} is neither here nor pinned.",
            seen="no such folder" + (f", and {revision!r} is no commit" if revision else ", and no commit behind an @"),
            expected="a folder with safetensors, or org/name@ and the 40 digits of a commit: a branch moves, and the "
            "next run would tune another model",
            remedy=f"check the path, or look the commit up: git ls-remote https://huggingface.co/{name} HEAD",
        )
    return Base(address, 0, 0, None, "it lies in a hub, and is fetched when the run starts")


def _parameters(config: Mapping[str, Any]) -> int:
    try:
        return model_shape(config).parameters
    except ModelError:  # an architecture whose shapes are not known here
        return 0
