"""What the memory plan decides must be what is set, or the cheapest that fits this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunegate.models.files import read_config
from tunegate.train import hold
from tunegate.train.hold import decide, longest_row, memory_bytes
from tunegate.train.settings import TrainSettings


def test_a_small_run_keeps_its_activations_and_a_plain_optimizer(tiny_base: Path, tiny_dataset: Path) -> None:
    held = decide(TrainSettings(), read_config(tiny_base), longest_row(tiny_dataset), device="cpu")
    assert (held.gradient_checkpointing, held.optim) == (False, "adamw_torch_fused")
    assert "fits" in held.reason


def test_activations_are_computed_twice_where_they_do_not_fit(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(tiny_base)
    settings = TrainSettings(method="lora", per_device_train_batch_size=512, max_length=4096)
    monkeypatch.setattr(hold, "memory_bytes", lambda device: 3 << 30)
    held = decide(settings, config, 4096, device="cpu")
    assert held.gradient_checkpointing
    assert decide(settings, config, 8, device="cpu").gradient_checkpointing is False  # the rows are what counts


@pytest.mark.parametrize("checkpointing", [True, False])
def test_what_is_set_stays(checkpointing: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "memory_bytes", lambda device: 1 << 20)
    settings = TrainSettings(gradient_checkpointing=checkpointing, optim="adamw_torch")
    held = decide(settings, read_config(tiny_base), 100, device="cpu")
    assert (held.gradient_checkpointing, held.optim) == (checkpointing, "adamw_torch")


def test_paging_is_chosen_on_a_gpu_alone_and_only_when_nothing_else_fits(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = read_config(tiny_base)
    monkeypatch.setattr(hold, "memory_bytes", lambda device: 1 << 20)
    assert decide(TrainSettings(), config, 100, device="cuda").optim.startswith("paged")
    assert not decide(TrainSettings(), config, 100, device="cpu").optim.startswith("paged")
    monkeypatch.setattr(hold, "memory_bytes", lambda device: 80 << 30)
    assert not decide(TrainSettings(), config, 100, device="cuda").optim.startswith("paged")


def test_a_model_that_cannot_be_planned_is_trained_the_careful_way() -> None:
    held = decide(TrainSettings(), {"model_type": "unheard-of"}, 100, device="cpu")
    assert held.gradient_checkpointing
    assert "no memory plan" in held.reason


def test_the_memory_of_a_machine_is_known() -> None:
    assert 1 << 28 < memory_bytes("cpu") < 1 << 50
