"""Rows that lie one behind the other must be computed as if each were alone."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.train.attention import ROW_ATTENTION, use_row_attention

torch = pytest.importorskip("torch")

ROWS = [[5, 9, 2, 7, 1, 8, 3], [4, 4, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def model(kind: str, **kwargs: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **kwargs,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def one_behind_the_other(rows: list[list[int]]) -> dict[str, Any]:
    """A batch as TRL's own collator makes it."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([{"input_ids": row} for row in rows])
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [("llama", {}), ("qwen3", {}), ("mistral", {"sliding_window": 4}), ("mistral", {"sliding_window": None})],
)
def test_each_row_is_computed_as_if_it_were_alone(kind: str, kwargs: dict[str, Any]) -> None:
    made = model(kind, **kwargs)
    with torch.no_grad():
        alone = [made(input_ids=torch.tensor([row])).logits[0] for row in ROWS]
        assert use_row_attention(made) == ROW_ATTENTION
        together = made(**one_behind_the_other(ROWS), use_cache=False).logits[0]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_padded_batches_are_still_masked() -> None:
    made = model("llama")
    with torch.no_grad():
        alone = made(input_ids=torch.tensor([ROWS[1]])).logits[0]
        use_row_attention(made)
        ids = torch.tensor([ROWS[0], [0] * 4 + ROWS[1]])
        mask = torch.tensor([[1] * 7, [0] * 4 + [1] * 3])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = made(input_ids=ids, attention_mask=mask, position_ids=positions).logits[1, 4:]
    assert torch.allclose(padded, alone, atol=1e-5)
