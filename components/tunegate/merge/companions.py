"""What belongs to a model beside its weights: configuration, tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
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


def refuse_other_vocabulary(base: Path, adapter: Path) -> None:
    """Refuses an adapter whose tokenizer has tokens for which the base has no embedding.

    Raises:
        AdapterError: naming both sizes.
    """
    import json

    path = adapter / "tokenizer.json"
    if not path.is_file():
        return
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    ids = list(document.get("model", {}).get("vocab", {}).values()) if _has_mapping(document) else []
    ids += [token["id"] for token in document.get("added_tokens", [])]
    size = int(read_config(base).get("vocab_size", 0))
    if ids and size and max(ids) >= size:
        raise AdapterError(
            f"The adapter in {adapter} was trained with another vocabulary.",
            seen=f"its tokenizer's highest token id is {max(ids)}",
            expected=f"below {size}, the base's vocab_size",
            remedy="use the base that the adapter was trained on",
        )


def _has_mapping(document: dict[str, Any]) -> bool:
    return isinstance(document.get("model", {}).get("vocab"), dict)
