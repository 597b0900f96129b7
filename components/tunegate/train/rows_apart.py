"""Before training without padding: rows that lie one behind the other must not see each other in this model.

Attention is told where rows begin. Convolutions and state-space layers are not everywhere, and a model that carries
something from one row into the next would learn from what it will never see. So two rows are computed alone and
together, by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunegate.contracts.errors import SettingsError

#: Tokens of each of the two rows: enough for what leaks, which is worst at a row's first tokens.
_TOKENS = 64

#: The largest relative difference of a token's logits that rounding explains, in float32 and in 16 bits.
_ROUNDING = {False: 1e-3, True: 0.1}


def refuse_mixed_rows(
    model: Any, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Refuses a model that computes rows otherwise when they lie one behind the other.

    Args:
        model: a causal language model, with the attention that it will be trained with.
        collate: makes a batch of rows, one behind the other.
        rows: tokenized rows, at least two.

    Raises:
        SettingsError: when the logits of a token differ by more than rounding.
    """
    import torch

    two = [{name: value[:_TOKENS] for name, value in row.items() if isinstance(value, list)} for row in rows[:2]]
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = torch.cat([_logits(model, collate([row])) for row in two])
        together = _logits(model, collate(two))
    model.train(training)
    difference = float(((together - alone).norm(dim=-1) / alone.norm(dim=-1).clamp(min=1e-6)).max())
    allowed = _ROUNDING[next(model.parameters()).dtype in (torch.bfloat16, torch.float16)]
    if not difference <= allowed:  # a difference that is no number is refused as well
        raise SettingsError(
            f"A {model.config.model_type} model mixes rows that lie one behind the other.",
            seen=f"two rows, alone and together: the logits of a token differ by {difference:.2g} of their norm",
            expected=f"at most {allowed:g}: each row computed as if it were alone",
            remedy="set per_device_train_batch_size and per_device_eval_batch_size to 1, and "
            "gradient_accumulation_steps to the rows of a batch",
        )


def refuse_long_chunks(config: Any, longest: int) -> None:
    """Refuses rows that are longer than the chunks in which the model's layers attend.

    Args:
        config: the model's configuration.
        longest: tokens of the longest row.

    Raises:
        SettingsError: rows are attended as wholes here, which is the same only while one chunk holds them.
    """
    chunk = getattr(config.get_text_config(), "attention_chunk_size", None)
    if chunk and longest > chunk:
        raise SettingsError(
            f"A {config.model_type} model attends in chunks, and rows are longer than one.",
            seen=f"rows of up to {longest} tokens",
            expected=f"at most {chunk}, its attention_chunk_size",
            remedy=f"set max_length to {chunk} or less",
        )


def _logits(model: Any, batch: Mapping[str, Any]) -> Any:
    """``tokens × vocabulary`` in float32."""
    on_device = {
        name: value.to(model.device) if hasattr(value, "to") else value
        for name, value in batch.items()
        if name != "labels"
    }
    return model(**on_device, use_cache=False).logits[0].float()
