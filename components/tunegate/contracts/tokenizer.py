"""The vocabulary in a ``tokenizer.json``, without the library that runs it."""

from __future__ import annotations

from pathlib import Path

from tunegate.contracts.files import read_json_object

TOKENIZER_NAME = "tokenizer.json"


def token_ids(path: Path) -> dict[str, int]:
    """Token → id: the model's vocabulary is a mapping (BPE, WordPiece), or a list of [token, score] (Unigram).

    Raises:
        ValueError: when the file is no tokenizer of the tokenizers library; callers say what it should have been.
    """
    document = read_json_object(path)
    try:
        vocabulary = document["model"]["vocab"]
        ids = (
            dict(vocabulary)
            if isinstance(vocabulary, dict)
            else {entry[0]: place for place, entry in enumerate(vocabulary)}
        )
        return ids | {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
