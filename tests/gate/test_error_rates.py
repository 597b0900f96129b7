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
from tunegate.gate.units import Sample, sample_of

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


def _false_promotions_of_real_scores(
    draw: Draw, rows: int, draws: int, margin: float = 0.1, *, lowest: float = -1.0, tasks: int = 1
) -> float:
    """Of one task at the margin; any others are as good as their references."""
    rng, promoted, done = np.random.default_rng(rows), 0, 0
    while done < draws:
        count = min(2000, draws - done)
        passed = np.ones(count, dtype=bool)
        for task in range(tasks):
            values = draw(rng, (count, rows), margin) + (margin if task else 0.0)
            passed &= betting_p_value(values, -margin, lowest=lowest, alpha=ALPHA) <= ALPHA
        promoted += int(passed.sum())
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


def _limited_losses(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    """What ``max_row_loss: 0.3`` says: nothing is worse than that, and as much as the margin allows is as bad."""
    return np.where(rng.random(shape) < margin / 0.3, -0.3, 0.0)


def _limited_losses_and_large_gains(rng: np.random.Generator, shape: tuple[int, int], margin: float) -> Array:
    """The same, where some rows make up for more: gains above the limit are cut, which must not help."""
    won = 0.1
    return np.where(rng.random(shape) < won, 1.0, np.where(rng.random(shape) < _lost(won, margin), -0.3, 0.0))


def _lost(won: float, margin: float) -> float:
    """Of the other rows, the share that must be lost for the mean to be the margin; nothing else can be."""
    return min((won + margin) / (0.3 * (1 - won)), 1.0)


LIMITED: dict[str, Draw] = {
    "limited losses": _limited_losses,
    "limited losses, large gains": _limited_losses_and_large_gains,
}
CELLS = [
    *((shape, SHAPES[shape], margin, -1.0) for shape in SHAPES for margin in (0.02, 0.05, 0.1)),
    *((shape, draw, margin, -0.3) for shape, draw in LIMITED.items() for margin in (0.05, 0.1)),
]
#: Others than the first list, and the most exposed of each kind.
CELLS_FAST = [
    ("very rare losses", _very_rare_losses, 0.02, -1.0),
    ("narrow", _narrow, 0.05, -1.0),
    ("limited losses", _limited_losses, 0.1, -0.3),
    ("limited losses, large gains", _limited_losses_and_large_gains, 0.1, -0.3),
]


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("shape", "draw", "margin", "lowest"), CELLS_FAST)
def test_margins_row_limits_and_more_tasks_let_no_model_at_the_margin_through(
    shape: str, draw: Draw, margin: float, lowest: float, tasks: int
) -> None:
    found = _false_promotions_of_real_scores(draw, 100, 1500, margin, lowest=lowest, tasks=tasks)
    assert found <= ALPHA + TOLERANCE, shape


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("rows", [30, 100, 300])
@pytest.mark.parametrize(("shape", "draw", "margin", "lowest"), CELLS)
def test_margins_row_limits_and_more_tasks_let_no_model_at_the_margin_through_at_every_size(
    shape: str, draw: Draw, margin: float, lowest: float, rows: int, tasks: int
) -> None:
    found = _false_promotions_of_real_scores(draw, rows, DRAWS, margin, lowest=lowest, tasks=tasks)
    print(f"\n{rows} rows, {shape}, margin {margin}, no row below {lowest}, {tasks} tasks: drawn {found:.4f}")
    assert found <= ALPHA + TOLERANCE


def _easy_rows_first(rng: np.random.Generator, rows: int, margin: float) -> Array:
    """Ids in the order of difficulty: the candidate gains on the first half and loses more on the second."""
    return np.concatenate([np.full(rows // 2, 0.4), np.full(rows - rows // 2, -0.4)]) - margin + _spread(rng, rows)


def _hard_rows_last(rng: np.random.Generator, rows: int, margin: float) -> Array:
    """Four fifths a little better, then the fifth that is lost."""
    few = rows // 5
    return np.concatenate([np.full(rows - few, 0.15), np.full(few, -0.6)]) - margin + _spread(rng, rows)


def _spread(rng: np.random.Generator, rows: int) -> Array:
    return rng.uniform(-0.2, 0.2, rows)


ORDERED = {"easy rows first": _easy_rows_first, "hard rows last": _hard_rows_last}


def _false_promotions_of_ordered_scores(
    draw: Callable[[np.random.Generator, int, float], Array], rows: int, draws: int, margin: float = 0.1
) -> float:
    """By what decides in the gate; each draw is another set of rows, whose sorted ids follow the difficulty."""
    rule = Rule("t", "m", "quantized", "merged", margin=margin, score_range=(0.0, 1.0))
    rng, promoted = np.random.default_rng(rows), 0
    for number in range(draws):
        sample = sample_of(draw(rng, rows, margin), [f"{number}/{row:05}" for row in range(rows)])
        promoted += compare(rule, sample, alpha=ALPHA).passes(-margin, ALPHA)
    return promoted / draws


@pytest.mark.parametrize("shape", ORDERED)
def test_a_model_at_the_margin_is_rarely_promoted_where_row_ids_follow_the_difficulty(shape: str) -> None:
    """In the order of the ids, betting would have won its case half-way: 99 % of these were promoted."""
    assert _false_promotions_of_ordered_scores(ORDERED[shape], 200, 300) <= ALPHA + TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("rows", [30, 100, 300, 1000])
@pytest.mark.parametrize("shape", ORDERED)
def test_row_ids_that_follow_the_difficulty_promote_no_model_at_the_margin_at_every_size(shape: str, rows: int) -> None:
    found = _false_promotions_of_ordered_scores(ORDERED[shape], rows, 2000)
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
    ids = [f"row {i}" for i in range(rows)]
    shown = [
        compare(rule, sample_of(np.repeat([1.0, -1.0, 0.0], [a, b, rows - a - b]), ids), alpha=ALPHA).shown(ALPHA)
        for a, b in zip(gains, losses, strict=True)
    ]
    assert shown == refuted(gains, losses, rows, -0.1, alpha=ALPHA).tolist()
    assert 0 < sum(shown) < len(shown)
    values = _narrow(rng, (12, rows), 0.04)
    by_betting = betting_p_value(values, -0.1, lowest=-1.0, alpha=ALPHA) <= ALPHA
    samples = [Sample(row, row.min(), grouped=False) for row in values]
    assert [compare(real, sample, alpha=ALPHA).shown(ALPHA) for sample in samples] == by_betting.tolist()
