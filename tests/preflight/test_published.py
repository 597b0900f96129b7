"""Published figures: shown as they are, with the arithmetic that they follow and the one that we follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tunegate.contracts.settings import parse_settings, settings_document
from tunegate.preflight.known_models import known_config
from tunegate.preflight.memory import plan
from tunegate.preflight.published import METHODS, PUBLISHED, adapter_convention, compare
from tunegate.train.settings import TrainSettings


def settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every setting of train, from a few."""
    return settings_document(parse_settings(TrainSettings, values, where="test"))


def test_70b_with_a_fifth_of_a_percent_of_lora_is_14168_or_14224_gb_by_the_dtype_of_the_adapter() -> None:
    assert adapter_convention(70 * 10**9, 0.002, "mixed") == 141_680_000_000  # 140 + 1.68
    assert adapter_convention(70 * 10**9, 0.002, "float32") == 142_240_000_000  # 140 + 2.24, as PEFT holds adapters


def test_the_plan_counts_an_adapter_at_16_bytes_a_parameter_as_peft_holds_it() -> None:
    """Weight and two moments are there in the passes, and the gradient as well in the optimizer step."""
    planned = plan(known_config("llama-3-70b"), settings({"method": "lora"}), gradient_checkpointing=True)
    held = {part.name: part.bytes for part in planned.components}
    step = planned.phases["optimizer step"] - held["frozen weights"] - held["runtime"]
    assert step == 16 * planned.trainable_parameters


@pytest.mark.parametrize(("dtype", "each"), [("auto", 16), ("bfloat16", 8)])
def test_full_fine_tuning_takes_16_bytes_a_parameter_with_float32_masters_and_8_in_pure_bfloat16(
    dtype: str, each: int
) -> None:
    planned = plan(known_config("llama-3-8b"), settings({"method": "full", "dtype": dtype}))
    runtime = next(part.bytes for part in planned.components if part.name == "runtime")
    assert planned.phases["optimizer step"] - runtime == each * 8_030_261_248


def test_the_published_full_figures_are_20_bytes_a_parameter_whatever_the_batch() -> None:
    for rounded, figures in PUBLISHED.values():
        assert figures["full"] * 10**9 == 20 * rounded


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_cell_has_a_reason(model: str) -> None:
    found = compare(model, settings)
    assert tuple(cell.method for cell in found) == METHODS
    for cell in found:
        assert cell.recomputed.tokens == cell.kept.tokens == 4 * 4096
        assert cell.recomputed.gradient_checkpointing
        assert not cell.kept.gradient_checkpointing
        alike = abs(cell.recomputed.peak_bytes - cell.published_bytes) <= 0.1 * cell.published_bytes
        if cell.method != "full":
            assert cell.why.startswith("alike") == alike


def test_9_gb_of_qlora_leave_no_room_for_what_the_tokens_need() -> None:
    cell = next(cell for cell in compare("llama-3-8b", settings) if cell.method == "qlora")
    # NF4: 6.98·10⁹ weights at 4.127 bits; embeddings, head and norms in 16; rank 16: 41.9·10⁶ × 12 B; 0.5 GB
    held = 6_979_321_856 * 4.127 / 8 + 1_050_939_392 * 2 + 41_943_040 * 12 + 0.5e9
    checkpoints = 32 * 16_384 * 4096 * 2
    assert 9e9 - held < checkpoints < cell.recomputed.peak_bytes - held
    assert "2.3 GB" in cell.why
    assert "8.4 GB" in cell.why  # 16,384 × 128,256 × 4 B
