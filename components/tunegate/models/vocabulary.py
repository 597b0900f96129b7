"""Whether an adapter was trained with the vocabulary of its base."""

from __future__ import annotations

from pathlib import Path

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.tokenizer import TOKENIZER_NAME, token_ids
from tunegate.models.files import read_config


def refuse_other_vocabulary(base: Path, adapter: Path) -> None:
    """Refuses an adapter whose tokenizer gives other ids than the base's embeddings were trained with.

    Raises:
        AdapterError: naming the tokens that differ, or the id that has no embedding.
    """
    if not (adapter / TOKENIZER_NAME).is_file():
        return
    trained_with, belongs = _token_ids(adapter), _token_ids(base) if (base / TOKENIZER_NAME).is_file() else {}
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
    try:
        return token_ids(folder / TOKENIZER_NAME)
    except ValueError as error:
        raise AdapterError(
            f"{folder / TOKENIZER_NAME} cannot be read.",
            seen=str(error),
            expected="a tokenizer of the tokenizers library",
            remedy="copy the base's tokenizer files beside the adapter, or remove them",
        ) from error
