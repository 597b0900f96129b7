"""Devices: a GPU is found by what people call it, and says honestly whether a run fits."""

from __future__ import annotations

import pytest

from tunegate.contracts.errors import InputError
from tunegate.contracts.settings import settings_document
from tunegate.preflight.devices import DEVICES, find_device, fits
from tunegate.preflight.known_models import KNOWN_MODELS, known_config
from tunegate.preflight.memory import USABLE_SHARE
from tunegate.preflight.model_shape import model_shape
from tunegate.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("L4", "L4"),
        ("l40s", "L40S"),
        ("A100-80GB", "A100 80GB"),
        ("NVIDIA A100 40GB", "A100 40GB"),
        ("h100", "H100"),
        ("H100-80GB", "H100"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_a_gpu_is_found_by_what_people_call_it(name: str, found: str) -> None:
    assert find_device(name).name == found


def test_an_a100_without_its_size_is_not_guessed() -> None:
    with pytest.raises(InputError, match="more than one") as caught:
        find_device("A100")
    assert "A100 40GB, A100 80GB" in caught.value.expected


@pytest.mark.parametrize("name", ["TPU", "", "H300"])
def test_a_gpu_that_is_not_known_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InputError, match="not a GPU that is known") as caught:
        find_device(name)
    assert all(device.name in caught.value.expected for device in DEVICES)


def test_every_gpu_says_who_says_so() -> None:
    assert [device.memory_bytes for device in DEVICES] == sorted(device.memory_bytes for device in DEVICES)
    assert all(device.source.startswith("https://") for device in DEVICES)


def test_what_fits_a_gpu_leaves_a_tenth_of_it_free_and_fits_every_larger_one() -> None:
    train = settings_document(TrainSettings(method="lora", per_device_train_batch_size=4, max_length=4096))
    found = fits(known_config("llama-3-8b"), train)
    assert [fit.device for fit in found] == list(DEVICES)
    for fit in found:
        assert fit.choice.fits == (fit.choice.plan.peak_bytes <= fit.device.memory_bytes * USABLE_SHARE)
    assert [fit.choice.fits for fit in found] == sorted(fit.choice.fits for fit in found)
    assert {fit.choice.fits for fit in found} == {False, True}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as Hugging Face's model pages count them, from the safetensors files
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_a_known_model_has_as_many_parameters_as_the_real_one(name: str, parameters: int) -> None:
    assert model_shape(known_config(name)).parameters == parameters
    assert name in KNOWN_MODELS
