"""AWQ rescales layers together: a choice that tears them apart is refused before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.quantize.awq_layers import check_rescaled_whole
from tunegate.quantize.layers import linear_widths
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run

pytest.importorskip("torch")


def test_an_ignored_layer_before_a_quantized_one_is_refused_before_the_model_is_loaded(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunegate.models.load.load_causal_lm", lambda *_, **__: pytest.fail("the model was loaded"))
    settings = QuantizeSettings(scheme="W4A16_ASYM", ignore=("lm_head", "re:.*up_proj$"), num_calibration_samples=8)
    with pytest.raises(SettingsError, match="would rescale 2 layers") as caught:
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.items[0].startswith("model.layers.0.mlp.up_proj goes with")
    assert "model.layers.0.mlp.down_proj" in caught.value.items[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ignored", "torn"),
    [
        ((), ()),
        (("re:.*layers.0.*",), ()),
        (("re:.*mlp.*",), ()),
        (("model.layers.1.mlp.down_proj",), ("model.layers.1.mlp.down_proj",)),
        (("model.layers.1.self_attn.k_proj",), ("model.layers.1.self_attn.k_proj",)),
    ],
)
def test_only_a_choice_that_tears_layers_apart_is_refused(
    ignored: tuple[str, ...], torn: tuple[str, ...], tiny_base: Path
) -> None:
    layers = tuple(linear_widths(tiny_base, ignore=("lm_head", *ignored)))
    if not torn:
        check_rescaled_whole(tiny_base, layers)
        return
    with pytest.raises(SettingsError) as caught:
        check_rescaled_whole(tiny_base, layers)
    assert [item.split()[0] for item in caught.value.items] == list(torn)
