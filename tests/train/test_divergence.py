"""A loss that runs away must be seen early, and an ordinary one must not be called so."""

from __future__ import annotations

import math

import pytest

from tunegate.train.divergence import divergence


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": float(i + 1), "loss": value} for i, value in enumerate(values)]


def test_a_loss_that_is_no_number_is_hopeless_and_its_step_is_named() -> None:
    found = divergence(losses(2.0, math.nan, 1.0))
    assert found is not None
    assert found.hopeless
    assert "step 2" in found.text


def test_a_training_loss_that_rises_is_seen_with_both_numbers() -> None:
    found = divergence(losses(2.0, 2.0, 2.1, 2.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0))
    assert found is not None
    assert not found.hopeless
    assert "2.000" in found.text and "5.000" in found.text


def test_a_validation_loss_above_the_base_is_seen() -> None:
    found = divergence([{"step": 0.0, "eval_loss": 2.0}, {"step": 10.0, "eval_loss": 2.5}])
    assert found is not None
    assert "step 10" in found.text


@pytest.mark.parametrize(
    "values",
    [
        (2.0, 1.5, 1.2, 1.0, 0.9, 0.9, 0.8, 0.9, 0.8, 0.8),
        (0.5, 0.9, 0.4, 0.6, 0.5, 0.7, 0.5, 0.9, 0.4, 0.6),  # noisy, and going nowhere
        (1.0, 9.0),  # two steps say nothing
    ],
)
def test_ordinary_losses_are_left_alone(values: tuple[float, ...]) -> None:
    log = [{"step": 0.0, "eval_loss": 2.0}, *losses(*values), {"step": 11.0, "eval_loss": 2.1}]
    assert divergence(log) is None
