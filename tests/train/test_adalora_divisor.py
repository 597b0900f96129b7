"""AdaLoRA divides its update by the first rank. PEFT does not save that number, so it must not train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.hold import Held
from tunegate.train.settings import TrainSettings
from tunegate.train.trainer import build_trainer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_divisor_stays_the_first_rank_on_a_base_of_any_dtype(
    dtype: str, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(method="adalora", r=2, init_r=4, tinit=1, tfinal=2, max_length=256, dtype=dtype)
    trainer = build_trainer(
        load_causal_lm(tiny_base, dtype=dtype), load_tokenizer(tiny_base), tiny_dataset, settings,
        Held(False, "adamw_torch", ""), scratch=tmp_path,
    )  # fmt: skip
    divisors = [p for name, p in trainer.model.named_parameters() if "ranknum" in name]
    assert [(p.item(), p.requires_grad) for p in divisors] == [(4.0, False)] * 14
