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


def copy_companions(base: Path, adapter: Path, output: Path, *, dtype: str) -> dict[str, str]:
    """Copies the tokenizer that the adapter was trained with and the base's generation settings, byte for byte.

    An adapter without a tokenizer gets the base's.

    Returns:
        file name → sha256 of what was copied.
    """
    config = read_config(base)
    if dtype != "auto":
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype}
        (output / "config.json").write_bytes(pretty_json(config))
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
