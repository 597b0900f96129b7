"""A model that carries something from one row of a batch into the next must not be trained on rows without padding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.train.attention import use_row_attention
from tunegate.train.rows_apart import refuse_long_chunks, refuse_mixed_rows

torch = pytest.importorskip("torch")

ROWS = [{"input_ids": [5, 9, 2, 7, 1, 8, 3]}, {"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}]


def model(kind: str, **kwargs: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2, **kwargs,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    use_row_attention(made)
    return made


def collator() -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_models_of_attention_alone_are_trained(kind: str) -> None:
    made = model(kind)
    made.train()
    refuse_mixed_rows(made, collator(), ROWS)
    assert made.training


def test_a_model_whose_convolutions_run_across_rows_is_refused() -> None:
    made = model("lfm2", full_attn_idxs=[1], conv_L_cache=3)
    with pytest.raises(SettingsError, match="lfm2 model mixes rows") as caught:
        refuse_mixed_rows(made, collator(), ROWS)
    assert "per_device_train_batch_size" in caught.value.remedy


def test_the_same_model_is_trained_on_single_rows(tiny_dataset: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    from tunegate.train.hold import Held
    from tunegate.train.settings import TrainSettings
    from tunegate.train.trainer import build_trainer

    def build(rows: int) -> Any:
        made = model("lfm2", full_attn_idxs=[1], conv_L_cache=3)
        made.resize_token_embeddings(len(tiny_tokenizer))
        settings = TrainSettings(
            method="full", per_device_train_batch_size=rows, per_device_eval_batch_size=rows, max_length=256
        )
        return build_trainer(
            made, tiny_tokenizer, tiny_dataset, settings, Held(False, "adamw_torch", ""), scratch=tmp_path
        )

    with pytest.raises(SettingsError, match="mixes rows"):
        build(4)
    assert build(1).args.per_device_train_batch_size == 1


@pytest.mark.parametrize(("longest", "refused"), [(8, False), (9, True)])
def test_rows_longer_than_a_chunk_of_attention_are_refused(longest: int, refused: bool) -> None:
    config = SimpleNamespace(model_type="llama4", get_text_config=lambda: SimpleNamespace(attention_chunk_size=8))
    if refused:
        with pytest.raises(SettingsError, match="attends in chunks"):
            refuse_long_chunks(config, longest)
    else:
        refuse_long_chunks(config, longest)
