"""``training.json``: what train says of an adapter, and who may rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import read_json_object

TRAINING_NAME = "training.json"

#: How ``training.json`` names the method that leaves a whole model instead of an adapter.
FULL = "full"


def refuse_other_base(adapter: Path, training: Mapping[str, Any], base_digest: str) -> None:
    """Refuses a base that has other bytes than the one ``training.json`` names.

    Raises:
        AdapterError: when it has.
    """
    if training["base_digest"] != base_digest:
        raise AdapterError(
            f"The adapter in {adapter} was trained on another base.",
            seen=f"base {base_digest[:12]}",
            expected=f"base {training['base_digest'][:12]}, which its training.json names",
            remedy="give the base that it was trained on: the same files, byte for byte",
        )


def read_training(path: Path) -> dict[str, Any]:
    """How an adapter was trained: its base's digest, and how that was held.

    Raises:
        AdapterError: when the file is not what train writes.
    """
    keys = {"quant_type", "double_quant", "block_size", "weight_dtype", "modules"}
    try:
        training = read_json_object(path)
        four_bit = training["four_bit"]
        if not isinstance(training["base_digest"], str) or (four_bit is not None and four_bit.keys() != keys):
            raise ValueError(f"base_digest {training['base_digest']!r}, four_bit {four_bit!r}")
    except (ValueError, KeyError, AttributeError) as error:
        raise AdapterError(
            f"{path} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="what tunegate's train writes: base_digest, and four_bit with " + ", ".join(sorted(keys)),
            remedy="train the adapter again, or remove the file and set merge_base: original",
        ) from error
    return training
