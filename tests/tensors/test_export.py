"""The algebra of an export: the cut is the nearest there is, and the named modules are those that PEFT adapts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.tensors.export import named_targets, truncated

torch = pytest.importorskip("torch")

KINDS = ("q_proj", "k_proj", "up_proj")
BASE = [f"model.layers.{layer}.{kind}" for layer in range(3) for kind in KINDS] + ["model.norm", "lm_head"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_a_cut_is_the_nearest_update_of_its_rank_as_numpy_finds_it(
    outputs: int, inputs: int, rank: int, kept: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, inputs)), rng.normal(size=(outputs, rank))
    left, values, right = np.linalg.svd(b @ a, full_matrices=False)
    best = (left[:, :kept] * values[:kept]) @ right[:kept]
    small_a, small_b, found = truncated(torch.tensor(a), torch.tensor(b), kept)
    assert small_a.shape[0] == small_b.shape[1] <= kept
    assert np.allclose((small_b @ small_a).numpy(), best, atol=1e-9)
    same = min(len(values), len(found))
    assert np.allclose(found[:same].numpy(), values[:same], atol=1e-9)
    assert float(found[same:].sum()) == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from([name for name in BASE if name != "model.norm"]), min_size=1))
def test_named_targets_choose_in_peft_exactly_the_modules_that_were_adapted(adapted: set[str]) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    config: Any = SimpleNamespace(target_modules=named_targets(adapted, BASE))
    assert {name for name in BASE if check_target_module_exists(config, name)} == adapted


def test_a_kind_that_is_adapted_everywhere_is_named_once() -> None:
    everywhere = [name for name in BASE if name.endswith("q_proj")]
    assert named_targets([*everywhere, "model.layers.1.up_proj"], BASE) == ["q_proj", "model.layers.1.up_proj"]
