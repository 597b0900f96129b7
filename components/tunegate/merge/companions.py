"""What belongs to a model beside its weights: configuration, tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunegate.contracts.files import pretty_json, sha256_file
from tunegate.models.files import GENERATION_FILES, read_config, tokenizer_files


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
    copied: dict[str, str] = {}
    generation = [base / name for name in GENERATION_FILES if (base / name).is_file()]
    for file in [*(tokenizer_files(adapter) or tokenizer_files(base)), *generation]:
        shutil.copyfile(file, output / file.name)
        copied[file.name] = sha256_file(output / file.name)
    return copied
