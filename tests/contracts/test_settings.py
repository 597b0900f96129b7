"""Settings: a misspelt key or an impossible value is refused with what was probably meant."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import parse_settings, setting, settings_document


@dataclass(frozen=True)
class Example:
    r: int = setting(16, minimum=1, help="rank")
    rate: float = setting(2e-4, exclusive_minimum=0, maximum=1, help="rate")
    method: str = setting("lora", choices=("lora", "qlora"), help="method")
    targets: tuple[str, ...] = setting(("all-linear",), help="targets")
    limit: int | None = setting(None, help="limit")
    packing: bool = setting(False, help="packing")


def test_defaults_stand_once_and_values_replace_them() -> None:
    assert parse_settings(Example, {}, where="x") == Example()
    parsed = parse_settings(Example, {"r": 8, "rate": 1, "targets": ["q_proj"], "limit": 3}, where="x")
    assert parsed == Example(r=8, rate=1.0, targets=("q_proj",), limit=3)
    assert settings_document(parsed)["targets"] == ["q_proj"]


def test_a_whole_number_that_kfp_turned_into_a_double_is_still_an_int() -> None:
    assert parse_settings(Example, {"r": 8.0}, where="x").r == 8


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"learning_rat": 1}, "unknown key"),
        ({"r": -1}, "out of range"),
        ({"r": 0}, "out of range"),
        ({"rate": 0}, "out of range"),
        ({"rate": float("nan")}, "out of range"),
        ({"rate": 2.0}, "out of range"),
        ({"r": "16"}, "wrong type"),
        ({"r": 1.5}, "wrong type"),
        ({"r": True}, "wrong type"),
        ({"packing": 1}, "wrong type"),
        ({"rate": "2e-4"}, "wrong type"),
        ({"method": "qlroa"}, "unknown value"),
        ({"targets": "q_proj"}, "wrong type"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_settings(Example, values, where="recipe.train")


def test_the_error_names_the_nearest_known_key_and_value() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(Example, {"target": []}, where="recipe.train")
    assert "'targets'" in caught.value.remedy
    with pytest.raises(SettingsError) as caught:
        parse_settings(Example, {"method": "qlroa"}, where="recipe.train")
    assert "'qlora'" in caught.value.remedy
