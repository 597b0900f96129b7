"""Whether tokenizer, chat template and configuration agree on where an answer ends, and what pads it.

They are written by different people at different times. Where they disagree, the trained model ends its answer with a
token at which the server does not stop, and every answer runs on to the length limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.contracts.files import read_json_object
from tunegate.models.chat import render, token_ids
from tunegate.models.files import GENERATION_FILES, read_config

_CONFIG, _GENERATION = "config.json", GENERATION_FILES[0]
_TOKENIZER = "tokenizer_config.json"
_EOS, _PAD = "eos_token_id", "pad_token_id"

_QUESTION, _ANSWER = "Which tool is asked for?", "tunegate"


def refuse_contradictions(folder: Path, tokenizer: Any, *, conversations: bool) -> None:
    """Refuses a model whose files end or pad a text in different ways.

    Args:
        folder: the model's folder.
        tokenizer: its tokenizer.
        conversations: whether the chat template is used; rows of plain text do without it.

    Raises:
        ModelError: naming the files, the tokens and what to set.
    """
    config = read_config(folder)
    stated = {_CONFIG: config.get("text_config") or config, _GENERATION: _generation(folder)}
    stops = {name: found for name, document in stated.items() if (found := _ids(document.get(_EOS)))}
    size = int(stated[_CONFIG].get("vocab_size") or 0)
    _refuse_without_embedding(tokenizer, stated, size)
    if not stops:
        raise ModelError(
            f"Nothing in {folder} says where an answer ends.",
            seen=f"no {_EOS} in {_CONFIG} and none in {_GENERATION}",
            expected="the token that ends a turn",
            remedy=f"set {_EOS} to {tokenizer.eos_token_id} ({tokenizer.eos_token!r}) in both",
        )
    _refuse_two_minds(tokenizer, stops)
    used = _GENERATION if _GENERATION in stops else _CONFIG
    _refuse_other_eos(tokenizer, used, stops[used])
    pads = {_TOKENIZER: _ids(tokenizer.pad_token_id)} | {name: _ids(found.get(_PAD)) for name, found in stated.items()}
    _refuse_padding_with_text(tokenizer, pads)
    if conversations:
        _refuse_unheard_turn(tokenizer, used, stops[used])
        _refuse_padding_with_turns(tokenizer, pads, stops[used])


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template puts after an answer; None when that is no special token.

    Raises:
        ModelError: when there is no chat template, or labels would lie on the wrong tokens.
    """
    text = _answered_question(tokenizer)
    if text is None:
        return None
    special = _special_ids(tokenizer)
    return next((found for found in token_ids(tokenizer, text.rpartition(_ANSWER)[2]) if found in special), None)


def _answered_question(tokenizer: Any) -> str | None:
    """A question and its answer as the template writes them; None where it is for other turns than these."""
    from jinja2 import TemplateError

    prompt, answer = [{"role": "user", "content": _QUESTION}], [{"role": "assistant", "content": _ANSWER}]
    try:
        rendered = render(tokenizer, prompt, answer)
    except TemplateError:  # prepare asks it with every row
        return None
    return rendered.prompt_text + rendered.completion_text


def _special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}


def _generation(folder: Path) -> Mapping[str, Any]:
    path = folder / _GENERATION
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ModelError(
            f"{path} cannot be read.",
            seen=str(error),
            expected="a JSON object with generation settings",
            remedy="fetch the model again, or remove the file",
        ) from error


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else () if value is None else (int(value),)


def _refuse_without_embedding(tokenizer: Any, stated: Mapping[str, Mapping[str, Any]], size: int) -> None:
    """-1 is how older configurations say that there is no padding token."""
    named = {f"the tokenizer's {name}": _ids(getattr(tokenizer, name)) for name in (_EOS, _PAD)}
    named |= {f"{file}, {name}": _ids(found.get(name)) for file, found in stated.items() for name in (_EOS, _PAD)}
    unpadded = {(f"{file}, {_PAD}", -1) for file in stated}
    wrong = [
        f"{where}: {found}"
        for where, ids in named.items()
        for found in ids
        if size and not 0 <= found < size and (where, found) not in unpadded
    ]
    if wrong:
        raise ModelError(
            "A token that ends or pads a text has no embedding.",
            seen="; ".join(wrong),
            expected=f"an id below vocab_size {size}",
            remedy="use a token of the vocabulary: a new one would need a row of the embedding, trained and served",
            items=wrong,
        )


def _refuse_two_minds(tokenizer: Any, stops: Mapping[str, tuple[int, ...]]) -> None:
    if len(stops) == 2 and not set(stops[_CONFIG]) & set(stops[_GENERATION]):
        raise ModelError(
            f"{_CONFIG} and {_GENERATION} end a text at different tokens.",
            seen="; ".join(f"{name}: {_named(tokenizer, ids)}" for name, ids in stops.items()),
            expected=f"one token at least in both: a reader of {_CONFIG} alone would never stop",
            remedy=f"set {_EOS} in {_CONFIG} to what {_GENERATION} says, or the other way round",
        )


def _refuse_other_eos(tokenizer: Any, used: str, stops: tuple[int, ...]) -> None:
    if tokenizer.eos_token_id not in stops:
        raise ModelError(
            "Tokenizer and model end a text at different tokens.",
            seen=f"eos_token of {_TOKENIZER} is {_named(tokenizer, (tokenizer.eos_token_id,))}; "
            f"{_EOS} of {used} is {_named(tokenizer, stops)}",
            expected="the tokenizer's among the model's: training ends its rows with the one, and transformers stops "
            "at the other alone, where vLLM stops at either",
            remedy=f"add {tokenizer.eos_token_id} to {_EOS} of {used}, or correct eos_token of {_TOKENIZER}",
        )


def _refuse_unheard_turn(tokenizer: Any, used: str, stops: tuple[int, ...]) -> None:
    end = turn_end(tokenizer)
    if end is not None and end not in stops:
        raise ModelError(
            "The model does not stop where its chat template ends a turn.",
            seen=f"the template ends an answer with {_named(tokenizer, (end,))}; "
            f"{_EOS} of {used} is {_named(tokenizer, stops)}",
            expected="the token that ends a turn among those at which generation stops: otherwise every answer runs on",
            remedy=f"set {_EOS} to {sorted({end, *stops})} in {used}",
        )


def _refuse_padding_with_text(tokenizer: Any, pads: Mapping[str, tuple[int, ...]]) -> None:
    """A row that ends before others of its batch is filled up with padding, and only special tokens are not read.

    Pads that differ are no contradiction: the tokenizer's fills prompts, under a mask, the model's what has ended.
    """
    special = _special_ids(tokenizer)
    wrong = {
        name: readable
        for name, ids in pads.items()
        if (readable := tuple(found for found in ids if 0 <= found < len(tokenizer) and found not in special))
    }
    if wrong:
        raise ModelError(
            "A token of ordinary text pads.",
            seen="; ".join(f"{_PAD} of {name} is {_named(tokenizer, ids)}" for name, ids in wrong.items()),
            expected="a special token: the text of any other is read as the end of an answer that is shorter than "
            "others of its batch",
            remedy=f"set {_PAD} to that of the tokenizer, or leave it out",
        )


def _refuse_padding_with_turns(tokenizer: Any, pads: Mapping[str, tuple[int, ...]], stops: tuple[int, ...]) -> None:
    """What ends a turn may pad: nothing is read behind it, and transformers guesses no mask from an end."""
    text = _answered_question(tokenizer)
    if text is None:
        return
    before, _, behind = text.rpartition(_ANSWER)
    inside = set(token_ids(tokenizer, before.replace(_QUESTION, ""))) - {*stops, *token_ids(tokenizer, behind)}
    wrong = {name: found for name, ids in pads.items() if (found := tuple(pad for pad in ids if pad in inside))}
    if wrong:
        raise ModelError(
            "A token that the chat template puts into every turn pads.",
            seen="; ".join(f"{_PAD} of {name} is {_named(tokenizer, ids)}" for name, ids in wrong.items()),
            expected="a token of its own, or one that ends a turn: whoever takes padding out of a text, as "
            "transformers does where it is given no mask, takes the turns apart",
            remedy=f"set {_PAD} to {stops[0]} ({tokenizer.convert_ids_to_tokens(stops[0])!r}), which ends a text",
        )


def _named(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(found)!r} (id {found})" for found in ids)
