"""Rendering a conversation: one function, used to check rows, to calibrate and to ask the evaluated model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import ModelError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it; the completion's tokens carry the labels."""

    prompt_ids: list[int]
    completion_ids: list[int]
    prompt_text: str
    completion_text: str


def render(tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message]) -> Rendered:
    """Renders a conversation with the tokenizer's chat template, the way TRL's SFTTrainer does.

    Raises:
        ModelError: when there is no chat template, or it renders a finished conversation so that its text or its tokens
            do not start with the prompt's (labels would then lie on the wrong tokens).
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "The tokenizer has no chat template.",
            seen="chat_template is empty",
            expected="the template with which the model will be served",
            remedy="use an instruction-tuned base, add chat_template.jinja to it, or use rows of the 'text' format",
        )
    prompt_text = prompt_only(tokenizer, prompt)
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    if not whole.startswith(prompt_text):
        raise ModelError(
            "The chat template renders a prompt differently once it is answered.",
            seen=f"the prompt ends with {prompt_text[-40:]!r}",
            expected="a finished conversation that starts with exactly its prompt",
            remedy="use a chat template whose generation prompt is a prefix of the answered turn",
        )
    prompt_ids = token_ids(tokenizer, prompt_text)
    completion_ids = after_prompt(prompt_ids, token_ids(tokenizer, whole))
    return Rendered(prompt_ids, completion_ids, prompt_text, whole[len(prompt_text) :])


def after_prompt(prompt_ids: Sequence[int], whole_ids: Sequence[int]) -> list[int]:
    """The completion's token ids: those of the whole conversation behind the prompt's.

    Raises:
        ModelError: when the whole does not start with the prompt's tokens: the tokenizer then merges the prompt's end
            with the completion's beginning, and training would learn another border than the one that serving meets.
    """
    start = len(prompt_ids)
    if list(whole_ids[:start]) != list(prompt_ids):
        at = next((i for i, pair in enumerate(zip(prompt_ids, whole_ids, strict=False)) if pair[0] != pair[1]), 0)
        raise ModelError(
            "The tokenizer merges the end of a prompt with the beginning of its answer.",
            seen=f"from token {at} of {start} on, the answered prompt has other tokens than the prompt alone",
            expected="a finished conversation whose tokens start with exactly those of its prompt",
            remedy="end the template's generation prompt with a special token or a line break, not with a space",
        )
    return list(whole_ids[start:])


def rendered_pair(
    encode: Callable[[str], list[int]], prompt_text: str, completion_text: str
) -> tuple[list[int], list[int]]:
    """Token ids of a rendered prompt and of the completion behind it. See :func:`after_prompt`.

    Raises:
        ModelError: as there.
    """
    prompt = encode(prompt_text)
    return prompt, after_prompt(prompt, encode(prompt_text + completion_text))


def prompt_only(tokenizer: Any, prompt: Sequence[Message]) -> str:
    """The text of a prompt up to where the assistant's answer begins."""
    return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True))


def token_ids(tokenizer: Any, rendered: str) -> list[int]:
    """Token ids of text that a chat template rendered: special tokens are in it already and are not added again."""
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def render_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a row of the ``text`` format, with the end of the sequence that training appends."""
    return list(tokenizer(ended_text(tokenizer, text))["input_ids"])


def ended_text(tokenizer: Any, text: str) -> str:
    """Plain text with the end-of-sequence token that TRL appends unless it is there."""
    return text if text.endswith(tokenizer.eos_token) else text + str(tokenizer.eos_token)
