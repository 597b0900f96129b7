"""The memory of served weights: what the arithmetic says is what the files of real quantized models hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunegate.contracts.schemes import SCHEMES
from tunegate.preflight.known_models import known_config
from tunegate.preflight.model_shape import model_shape
from tunegate.preflight.served_weights import plain_bytes, served_bytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_linear_layers_take_what_their_tensors_take(
    scheme: str, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Tensors that are not quantized, and scales of groups, are float32 in this base and are served in 16 bits."""
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run
    from tunegate.tensors.shards import stored_tensors

    settings = QuantizeSettings(scheme=scheme, num_calibration_samples=8)
    run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I8": 1, "F8_E4M3": 1, "I64": 0}  # the shape is no weight
    held = 0
    for name, (_, spec) in stored_tensors(tmp_path / "out").items():
        elements = 1
        for length in spec.shape:
            elements *= length
        halved = "_proj" not in name or (SCHEMES[scheme].grouped and name.endswith("weight_scale"))
        held += elements * (2 if halved else sizes[spec.dtype])
    shape = model_shape(json.loads((tiny_base / "config.json").read_text("utf-8")))
    assert served_bytes(shape, scheme, group_size=64 if SCHEMES[scheme].grouped else 0) == held


def test_four_bits_take_about_a_quarter_and_eight_a_half_of_a_large_model() -> None:
    shape = model_shape(known_config("llama-3-70b"))
    plain = plain_bytes(shape)
    assert plain == shape.parameters * 2
    shares = {scheme: served_bytes(shape, scheme, group_size=128) / plain for scheme in SCHEMES}
    assert 0.27 < shares["W4A16"] < shares["W4A16_ASYM"] < 0.29
    assert 0.51 < shares["FP8"] < shares["FP8_DYNAMIC"] == shares["W8A8"] < 0.52
