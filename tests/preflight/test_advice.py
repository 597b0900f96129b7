"""Advice: the cheapest change first, each on top of those before it, and no change that saves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.contracts.settings import settings_document
from tunegate.preflight.advice import advise
from tunegate.preflight.devices import Device, find_device
from tunegate.preflight.known_models import known_config
from tunegate.preflight.memory import USABLE_SHARE, plan
from tunegate.train.settings import TrainSettings


def train(**settings: Any) -> dict[str, Any]:
    """Settings of four rows of 4096 tokens, with changes."""
    return settings_document(TrainSettings(**{"per_device_train_batch_size": 4, "max_length": 4096, **settings}))


def gpu(memory: float) -> Device:
    """A GPU of which ``memory`` bytes can be filled."""
    return Device("some", int(memory / USABLE_SHARE) + 10, "")


@pytest.mark.parametrize("name", ["llama-3-8b", "llama-3-70b", "llama-3.1-405b"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "adalora"])
@pytest.mark.parametrize("device", ["L4", "H100", "B200"])
def test_each_peak_is_that_of_the_run_with_every_change_so_far(name: str, method: str, device: str) -> None:
    config, held, target = known_config(name), train(method=method), find_device(device)
    before = plan(config, held).peak_bytes
    given = advise(config, held, target)
    for advice in given:
        held |= advice.settings
        planned = plan(config, held).peak_bytes
        assert advice.peak_bytes == planned
        assert planned < before or not advice.settings
        assert advice.fits == (planned <= int(target.memory_bytes * USABLE_SHARE))
        before = planned
    assert [advice.fits for advice in given[:-1]] == [False] * len(given[:-1])  # it ends where it fits
    assert given[-1].fits or not given[-1].settings if given else before <= target.memory_bytes * USABLE_SHARE


def test_a_run_that_fits_gets_no_advice() -> None:
    config, held = known_config("llama-3-8b"), train(method="lora")
    assert advise(config, held, gpu(plan(config, held).peak_bytes)) == ()


def test_time_is_spent_before_quality_is() -> None:
    config, held = known_config("llama-3-8b"), train(method="lora")
    twice = plan(config, {**held, "gradient_checkpointing": True}).peak_bytes
    assert [a.settings for a in advise(config, held, gpu(twice))] == [{"gradient_checkpointing": True}]
    changed = [list(advice.settings) for advice in advise(config, held, gpu(7e9))]
    assert (
        changed
        == [
            ["gradient_checkpointing"],
            ["per_device_train_batch_size", "gradient_accumulation_steps"],
            ["method"],
            ["max_length"],
            ["optim"],
            [],
        ][: len(changed)]
    )
    assert len(changed) >= 4


@pytest.mark.parametrize("batch", [1, 4, 6, 7])
def test_a_smaller_batch_accumulates_to_the_same_one(batch: int) -> None:
    held = train(method="lora", per_device_train_batch_size=batch, gradient_accumulation_steps=2)
    for advice in advise(known_config("llama-3-8b"), held, gpu(19e9)):
        held |= advice.settings
    assert held["per_device_train_batch_size"] * held["gradient_accumulation_steps"] == 2 * batch


def test_the_mildest_form_of_a_change_that_fits_is_advised() -> None:
    config, held = known_config("llama-3-8b"), train(method="lora", gradient_checkpointing=True)
    halved = plan(config, {**held, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}).peak_bytes
    (advice,) = advise(config, held, gpu(halved))
    assert advice.settings == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def test_a_change_that_saved_nothing_at_first_is_tried_again_after_another() -> None:
    """A full run's peak is its states, whatever the batch; as QLoRA its activations count."""
    changed = [next(iter(a.settings)) for a in advise(known_config("llama-3-70b"), train(method="full"), gpu(60e9))]
    assert changed == ["gradient_checkpointing", "method", "per_device_train_batch_size"]


def test_what_fits_no_gpu_says_so_last() -> None:
    given = advise(known_config("llama-3.1-405b"), train(method="full"), find_device("B200"))
    assert "more than one GPU" in given[-1].change
    assert not given[-1].fits


def test_a_larger_gpu_is_named_where_one_would_do() -> None:
    given = advise(known_config("llama-3-70b"), train(method="qlora"), find_device("L4"))
    assert "a larger GPU: L40S" in given[-1].change
