"""What belongs to a model beside its weights: configuration, tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import pretty_json, read_json_object, sha256_file
from tunegate.models.files import GENERATION_FILES, read_config, tokenizer_files

TOKENIZER = "tokenizer.json"


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
    """Refuses an adapter whose tokenizer gives other ids than the base's embeddings were trained with.

    Raises:
        AdapterError: naming the tokens that differ, or the id that has no embedding.
    """
    if not (adapter / TOKENIZER).is_file():
        return
    trained_with, belongs = _token_ids(adapter), _token_ids(base) if (base / TOKENIZER).is_file() else {}
    size = int(read_config(base).get("vocab_size") or 0)
    wrong = [
        f"{token!r}: {trained_with.get(token)}, base {id}"
        for token, id in belongs.items()
        if trained_with.get(token) != id
    ]
    wrong += [f"{token!r}: {id}, no embedding" for token, id in trained_with.items() if size and id >= size]
    if wrong:
        raise AdapterError(
            f"The adapter in {adapter} was trained with another vocabulary.",
            seen=f"{len(wrong)} tokens differ",
            expected=f"the token ids of the base, below its vocab_size {size}",
            remedy="use the base that the adapter was trained on",
            items=wrong,
        )


def _token_ids(folder: Path) -> dict[str, int]:
    """Token → id of a ``tokenizer.json``: a mapping (BPE, WordPiece), or a list of [token, score] (Unigram)."""
    try:
        document = read_json_object(folder / TOKENIZER)
        vocabulary = document["model"]["vocab"]
        ids = (
            dict(vocabulary)
            if isinstance(vocabulary, dict)
            else {entry[0]: place for place, entry in enumerate(vocabulary)}
        )
        return ids | {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise AdapterError(
            f"{folder / TOKENIZER} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="a tokenizer of the tokenizers library",
            remedy="copy the base's tokenizer files beside the adapter, or remove them",
        ) from error
