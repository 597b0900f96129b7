"""The gate's own error rates, where they are worst: a model exactly at the margin, drawn thousands of times.

`make torture` runs the full sizes; the fast suite runs some of them. What is drawn is judged by the functions that
decide in the gate, on many draws at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tunegate.gate.betting import betting_p_value
from tunegate.gate.comparison import compare, holm
from tunegate.gate.exact import exact_p_value, power, refuted
from tunegate.gate.policy import Rule

ALPHA = 0.05
#: What the error rate may be above alpha by: what 20,000 draws cannot tell apart, and no more.
TOLERANCE = 0.01
DRAWS = 20_000

ROWS = (30, 53, 60, 100, 200, 400, 1000)
DISCORDANCE = (0.05, 0.1, 0.2, 0.4)
MARGINS = (0.02, 0.05, 0.1)
BINARY = [(n, d, m) for n in ROWS for d in DISCORDANCE for m in MARGINS if m <= d]
#: Where Tango's bound alone lets more than alpha + 1 point through, and others.
BINARY_FAST = [(30, 0.1, 0.1), (53, 0.05, 0.05), (60, 0.1, 0.05), (100, 0.2, 0.1), (400, 0.4, 0.05), (1000, 0.05, 0.02)]

Array = np.ndarray


def _outcomes(rng: np.random.Generator, rows: int, discordance: float, truth: float, draws: int) -> tuple[Array, Array]:
    gain, loss = (discordance + truth) / 2, (discordance - truth) / 2
    drawn = rng.multinomial(rows, [gain, loss, 1 - discordance], draws)
    return drawn[:, 0], drawn[:, 1]


def _false_promotions(rows: int, discordance: float, margin: float) -> float:
    gains, losses = _outcomes(np.random.default_rng(rows), rows, discordance, -margin, DRAWS)
    return float(refuted(gains, losses, rows, -margin, alpha=ALPHA).mean())


@pytest.mark.parametrize(("rows", "discordance", "margin"), BINARY_FAST)
def test_a_model_at_the_margin_is_rarely_promoted_on_scores_of_0_and_1(
    rows: int, discordance: float, margin: float
) -> None:
    assert _false_promotions(rows, discordance, margin) <= ALPHA + TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "discordance", "margin"), BINARY)
def test_a_model_at_the_margin_is_rarely_promoted_on_scores_of_0_and_1_at_every_size(
    rows: int, discordance: float, margin: float
) -> None:
    drawn = _false_promotions(rows, discordance, margin)
    computed = power(rows, -margin, truth=-margin, discordance=discordance, alpha=ALPHA)
    print(f"\n{rows} rows, discordance {discordance:.0%}, margin {margin}: drawn {drawn:.4f}, computed {computed:.4f}")
    assert drawn <= ALPHA + TOLERANCE
    assert computed <= ALPHA + 1e-9
    assert drawn == pytest.approx(computed, abs=0.008)  # five standard deviations of 20,000 draws


def test_the_computed_error_rate_never_exceeds_alpha() -> None:
    """Not drawn but summed: the largest over every size of the list is still alpha."""
    rates = {cell: power(cell[0], -cell[2], truth=-cell[2], discordance=cell[1], alpha=ALPHA) for cell in BINARY}
    worst = max(rates, key=rates.__getitem__)
    assert rates[worst] <= ALPHA + 1e-9, worst


#: Differences of real scores within [-1, 1] whose mean is -margin: (generator, shape, margin) → draws.
Draw = Callable[[np.random.Generator, tuple[int, int], float], Array]


def _rare_losses(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    """Mostly a little better, seldom lost altogether: what percentiles of a bootstrap miss on few rows."""
    lost = 0.12
    return np.where(rng.random(shape) < lost, -1.0, (lost - margin) / (1 - lost))


def _very_rare_losses(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    """All equal but for a few rows that are lost altogether: as rare as the margin allows."""
    return np.where(rng.random(shape) < margin, -1.0, 0.0)


def _long_tail(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    """A tail of losses: beta-distributed, mean 1/6, shifted."""
    return (1 / 6 - margin) - rng.beta(0.3, 1.5, shape)


def _even(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    return rng.uniform(-0.8, 0.8, shape) - margin


def _narrow(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    return np.clip(rng.normal(-margin, 0.05, shape), -1, 1)


SHAPES: dict[str, Draw] = {
    "rare losses": _rare_losses,
    "very rare losses": _very_rare_losses,
    "long tail": _long_tail,
    "even": _even,
    "narrow": _narrow,
}


def _false_promotions_of_real_scores(draw: Draw, rows: int, draws: int, margin: float = 0.1) -> float:
    rng, promoted, done = np.random.default_rng(rows), 0, 0
    while done < draws:
        count = min(2000, draws - done)
        values = draw(rng, (count, rows), margin)
        promoted += int((betting_p_value(values, -margin, lowest=-1.0, alpha=ALPHA) <= ALPHA).sum())
        done += count
    return promoted / draws


@pytest.mark.parametrize("rows", [30, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_at_the_margin_is_rarely_promoted_on_real_scores(shape: str, rows: int) -> None:
    assert _false_promotions_of_real_scores(SHAPES[shape], rows, 4000) <= ALPHA + TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("rows", [30, 100, 300, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_at_the_margin_is_rarely_promoted_on_real_scores_at_every_size(shape: str, rows: int) -> None:
    found = _false_promotions_of_real_scores(SHAPES[shape], rows, DRAWS)
    print(f"\n{rows} rows, {shape}: drawn {found:.4f}")
    assert found <= ALPHA + TOLERANCE


@pytest.mark.parametrize("tasks", [1, 3, 10])
def test_more_tasks_do_not_let_a_model_through_that_is_at_the_margin_of_one(tasks: int) -> None:
    """The others keep their margins, as well as they can be told from it: all must pass, and nothing is corrected."""
    rng, rows, margin = np.random.default_rng(tasks), 200, 0.1
    passed = np.ones(DRAWS, dtype=bool)
    for task in range(tasks):
        truth = -margin if task == 0 else 0.0
        gains, losses = _outcomes(rng, rows, 0.2, truth, DRAWS)
        passed &= refuted(gains, losses, rows, -margin, alpha=ALPHA)
    assert passed.mean() <= ALPHA + TOLERANCE


@pytest.mark.parametrize("tasks", [1, 3, 10])
def test_a_model_that_keeps_every_margin_is_rarely_called_worse_however_many_tasks_there_are(tasks: int) -> None:
    """At every margin at once, where a FAIL is likeliest: uncorrected, ten tasks would be 40 % of the time."""
    rng, rows, margin, draws = np.random.default_rng(tasks), 100, 0.1, 4000
    drawn = [_outcomes(rng, rows, 0.2, -margin, draws) for _ in range(tasks)]
    known: dict[tuple[int, int], float] = {}

    def p_enough(gains: int, losses: int) -> float:
        if (gains, losses) not in known:
            known[gains, losses] = exact_p_value(losses, gains, rows, margin)
        return known[gains, losses]

    failed = [
        any(holm([p_enough(int(gains[i]), int(losses[i])) for gains, losses in drawn], alpha=ALPHA))
        for i in range(draws)
    ]
    assert np.mean(failed) <= ALPHA + TOLERANCE


@pytest.mark.parametrize(
    ("rows", "truth", "at_least"), [(100, 0.0, 0.65), (200, 0.0, 0.9), (400, 0.0, 0.99), (400, -0.03, 0.85)]
)
def test_an_equal_model_passes_often_enough_to_be_of_use(rows: int, truth: float, at_least: float) -> None:
    found = power(rows, -0.1, truth=truth, discordance=0.2, alpha=ALPHA)
    print(f"\n{rows} rows, margin 0.1, discordance 20 %, true difference {truth:+g}: P(PASS) {found:.3f}")
    assert found >= at_least


def test_what_was_simulated_is_what_decides_in_the_gate() -> None:
    """The vectors of this file against the comparison that the gate makes of the same rows."""
    rule = Rule("t", "m", "quantized", "merged", margin=0.1)
    real = Rule("t", "m", "quantized", "merged", margin=0.1, score_range=(0.0, 1.0))
    rng, rows = np.random.default_rng(5), 80
    gains, losses = _outcomes(rng, rows, 0.2, -0.02, 12)
    shown = [
        compare(rule, np.repeat([1.0, -1.0, 0.0], [a, b, rows - a - b]), alpha=ALPHA).shown(ALPHA)
        for a, b in zip(gains, losses, strict=True)
    ]
    assert shown == refuted(gains, losses, rows, -0.1, alpha=ALPHA).tolist()
    assert 0 < sum(shown) < len(shown)
    values = _narrow(rng, (12, rows), 0.04)
    by_betting = betting_p_value(values, -0.1, lowest=-1.0, alpha=ALPHA) <= ALPHA
    assert [compare(real, row, alpha=ALPHA).shown(ALPHA) for row in values] == by_betting.tolist()
