"""What belongs to a model beside its weights: configuration, tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.files import pretty_json, sha256_file
from tunegate.models.companions import COMPANIONS, copy_files, refuse_other_companions, tokenizer_digests
from tunegate.models.files import GENERATION_FILES, read_config, tokenizer_files
from tunegate.models.training import TRAINING_NAME


def copy_companions(base: Path, adapter: Path, output: Path, *, dtype: str, untied: bool = False) -> dict[str, str]:
    """Copies the tokenizer that the adapter was trained with and the base's generation settings, byte for byte.

    An adapter without a tokenizer gets the base's.

    Args:
        dtype: of the weights that were written, ``auto`` for the base's own.
        untied: whether the output head has values of its own now, which the base's configuration denies.

    Returns:
        file name → sha256 of what was copied.
    """
    config = read_config(base)
    if dtype != "auto" or untied:
        (output / "config.json").write_bytes(pretty_json(_changed(config, dtype, untied)))
    else:
        shutil.copyfile(base / "config.json", output / "config.json")
    return copy_files([*(tokenizer_files(adapter) or tokenizer_files(base)), *_generation_files(base)], output)


def refuse_changed_companions(base: Path, adapter: Path, training: Mapping[str, Any] | None) -> None:
    """Refuses an adapter or a base whose tokenizer, template or generation settings changed since training.

    Raises:
        ModelError: naming each file that differs.
    """
    if training is None:  # not trained here: nobody said with which tokenizer
        return
    found = tokenizer_digests(adapter) | {path.name: sha256_file(path) for path in _generation_files(base)}
    refuse_other_companions(adapter, found, training.get(COMPANIONS), stated_by=TRAINING_NAME)


def _generation_files(base: Path) -> list[Path]:
    return [base / name for name in GENERATION_FILES if (base / name).is_file()]


def _changed(config: Mapping[str, Any], dtype: str, untied: bool) -> dict[str, Any]:
    changed = dict(config)
    if dtype != "auto":
        changed.pop("torch_dtype", None)
        changed["dtype"] = dtype
    if untied:
        changed["tie_word_embeddings"] = False
    return changed
