"""What the tests of fleets share: adapters of several kinds, as PEFT itself saves them, on a tiny base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> MakeAdapter:
    """Makes an adapter of random weights in a new folder; equal arguments make equal ones."""
    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, *, base: Path = tiny_base, seed: int = 0, **options: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        from tunegate.models.load import load_causal_lm

        torch.manual_seed(seed)
        config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options})
        get_peft_model(load_causal_lm(base), config).save_pretrained(str(root / name))
        return root / name

    return make
