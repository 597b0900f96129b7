"""``training.json``: what train says of an adapter, and what later steps hold it against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import read_json_object

TRAINING_NAME = "training.json"

#: How ``training.json`` names the method that leaves a whole model instead of an adapter.
FULL = "full"

_FOUR_BIT_KEYS = {"quant_type", "double_quant", "block_size", "weight_dtype", "modules"}


def read_training(adapter: Path) -> dict[str, Any] | None:
    """An adapter's ``training.json``; None when it was not trained by tunegate.

    Raises:
        AdapterError: when it does not say which base the adapter was trained on, and how that was held.
    """
    path = adapter / TRAINING_NAME
    if not path.is_file():
        return None
    try:
        training = read_json_object(path)
        four_bit = training["four_bit"]
        if not isinstance(training["base_digest"], str) or (four_bit is not None and four_bit.keys() != _FOUR_BIT_KEYS):
            raise ValueError(f"base_digest {training['base_digest']!r}, four_bit {four_bit!r}")
    except (ValueError, KeyError, AttributeError) as error:
        raise AdapterError(
            f"{path} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="what tunegate's train writes: base_digest, and four_bit with "
            + ", ".join(sorted(_FOUR_BIT_KEYS)),
            remedy="train the adapter again, or remove the file and set merge_base: original",
        ) from error
    return training


def refuse_other_base(adapter: Path, training: Mapping[str, Any], base_digest: str) -> None:
    """Refuses a base whose bytes are not those that the adapter was trained on.

    Raises:
        AdapterError: naming both.
    """
    if training["base_digest"] != base_digest:
        raise AdapterError(
            f"The adapter in {adapter} was trained on another base.",
            seen=f"base {base_digest[:12]}",
            expected=f"base {training['base_digest'][:12]}, which its training.json names",
            remedy="give the same base (same files, byte for byte) to train and to every step after it",
        )
