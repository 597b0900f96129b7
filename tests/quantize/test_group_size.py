"""Group sizes: one that fits is picked, one that does not is refused with its layers."""

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.quantize.group_size import pick_group_size
from tunegate.quantize.layers import check_ignore, linear_widths

SMOLLM2 = {"model.layers.0.self_attn.q_proj": 576, "model.layers.0.mlp.down_proj": 1536}


def test_the_largest_size_that_divides_every_layer_is_picked() -> None:
    assert pick_group_size(SMOLLM2) == 64
    assert pick_group_size({"a": 4096, "b": 11008}) == 128
    assert pick_group_size({"a": 96}) == 32


def test_a_size_that_does_not_fit_is_refused_with_its_layers_and_the_size_that_does() -> None:
    with pytest.raises(SettingsError) as caught:
        pick_group_size(SMOLLM2, asked=128)
    assert caught.value.items == ("model.layers.0.self_attn.q_proj (inputs 576)",)
    assert "64" in caught.value.remedy and "ignore" in caught.value.remedy


def test_a_model_that_no_size_fits_is_refused_before_calibration() -> None:
    with pytest.raises(SettingsError) as caught:
        pick_group_size({"odd": 100, "even": 128})
    assert caught.value.items == ("odd (inputs 100)",)
    assert "W8A8" in caught.value.remedy


def test_layers_are_read_without_loading_weights_and_the_head_is_left_out(tiny_base) -> None:
    widths = linear_widths(tiny_base, ignore=("lm_head",))
    assert len(widths) == 2 * 7
    assert widths["model.layers.1.mlp.down_proj"] == 128
    assert "lm_head" not in widths
    assert pick_group_size(widths) == 64


def test_a_misspelt_layer_in_ignore_is_refused_and_the_nearest_is_named(tiny_base) -> None:
    with pytest.raises(SettingsError, match="ignore") as caught:
        linear_widths(tiny_base, ignore=("lm_haed",))
    assert "lm_head" in caught.value.remedy


def test_an_expression_that_cannot_be_read_is_refused() -> None:
    check_ignore(("lm_head", "re:.*mlp.*"))
    with pytest.raises(SettingsError, match="regular expression") as caught:
        check_ignore(("re:.*(mlp",))
    assert "re:.*(mlp" in caught.value.seen and caught.value.exit_code == 2


def test_a_tied_head_is_never_quantized_alone(tiny_base) -> None:
    with pytest.raises(SettingsError, match="shares its weights"):
        linear_widths(tiny_base, ignore=())


def test_ignoring_every_layer_is_refused(tiny_base) -> None:
    with pytest.raises(SettingsError, match="nothing to quantize"):
        linear_widths(tiny_base, ignore=("re:.*",))
