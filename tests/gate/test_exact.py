"""The exact test against probabilities that are summed and multiplied out another way, by scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from tunegate.gate.bounds import tango_bounds, tango_score
from tunegate.gate.comparison import holm
from tunegate.gate.exact import exact_bounds, exact_p_value, mcnemar_p_value, power, refuted


def _enumerated(gains: int, losses: int, rows: int, difference: float) -> float:
    """The p-value by going through every outcome, on a fine even grid of the nuisance parameter."""
    outcomes = np.array([(a, b) for a, b in itertools.product(range(rows + 1), repeat=2) if a + b <= rows])
    scores = tango_score(outcomes[:, 0], outcomes[:, 1], rows, difference)
    extreme = outcomes[scores >= float(tango_score(gains, losses, rows, difference)) - 1e-9]
    cells = np.column_stack([extreme, rows - extreme.sum(axis=1)])
    largest = 0.0
    for loss in np.linspace(max(0.0, -difference), (1 - difference) / 2, 400):
        gain = max(loss + difference, 0.0)
        largest = max(largest, float(multinomial.pmf(cells, rows, [gain, loss, max(1 - gain - loss, 0.0)]).sum()))
    return largest


@pytest.mark.parametrize(
    ("gains", "losses", "rows", "difference"),
    [(0, 0, 20, -0.1), (3, 4, 25, -0.2), (1, 0, 12, -0.05), (6, 1, 20, 0.1), (2, 9, 30, -0.1), (0, 5, 18, 0.05)],
)
def test_the_p_value_is_the_probability_that_going_through_every_outcome_gives(
    gains: int, losses: int, rows: int, difference: float
) -> None:
    found = exact_p_value(gains, losses, rows, difference)
    assert found == pytest.approx(_enumerated(gains, losses, rows, difference), abs=2e-3)


def test_a_model_that_only_ever_loses_is_judged_by_the_binomial_distribution() -> None:
    """No row differs: at the margin the likeliest truth is one without gains, and the chance is (1 − margin) to the n.

    Tango's bound passes it from 52 rows on, which is wrong 6.9 % of the time.
    """
    assert exact_p_value(0, 0, 53, -0.05) == pytest.approx(binom.pmf(0, 53, 0.05), rel=1e-6)
    assert tango_bounds(0, 0, 53, alpha=0.05)[0] > -0.05
    assert exact_bounds(0, 0, 53, alpha=0.05, threshold=-0.05)[0] < -0.05
    assert exact_bounds(0, 0, 59, alpha=0.05, threshold=-0.05)[0] > -0.05


@pytest.mark.parametrize("rows", [5, 17, 40])
@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.2])
def test_the_score_rises_with_each_gain_as_the_search_assumes(rows: int, difference: float) -> None:
    for losses in range(rows + 1):
        scores = tango_score(np.arange(rows - losses + 1), np.full(rows - losses + 1, losses), rows, difference)
        assert np.all(scores[1:] >= scores[:-1] - 1e-9)


def test_the_bounds_lie_outside_tangos_and_close_to_them_and_on_the_side_the_test_says() -> None:
    for gains, losses, rows in ((3, 3, 100), (43, 0, 100), (20, 35, 400), (0, 9, 60), (30, 0, 30), (0, 30, 30)):
        for threshold in (-0.1, -0.02, 0.25):
            lower, upper = exact_bounds(gains, losses, rows, alpha=0.05, threshold=threshold)
            tango = tango_bounds(gains, losses, rows, alpha=0.05)
            assert tango[0] - 0.03 < lower <= tango[0] + 2e-3
            assert tango[1] - 2e-3 <= upper < tango[1] + 0.03
            assert (exact_p_value(gains, losses, rows, threshold) <= 0.05) == (lower > threshold)
            assert (exact_p_value(losses, gains, rows, -threshold) <= 0.05) == (upper < threshold)


@pytest.mark.parametrize("rows", [24, 90])
def test_many_outcomes_at_once_are_judged_as_each_of_them_alone(rows: int) -> None:
    drawn = np.random.default_rng(3).multinomial(rows, [0.1, 0.2, 0.7], 60)
    together = refuted(drawn[:, 0], drawn[:, 1], rows, -0.15, alpha=0.05)
    alone = [exact_p_value(int(gains), int(losses), rows, -0.15) <= 0.05 for gains, losses, _ in drawn]
    assert together.tolist() == alone


def test_the_power_is_how_often_it_happens() -> None:
    rows, truth, discordance = 150, -0.02, 0.12
    drawn = np.random.default_rng(4).multinomial(rows, [0.05, 0.07, 0.88], 40_000)
    happened = refuted(drawn[:, 0], drawn[:, 1], rows, -0.1, alpha=0.05).mean()
    assert power(rows, -0.1, truth=truth, discordance=discordance, alpha=0.05) == pytest.approx(happened, abs=0.01)


def test_mcnemar_is_the_exact_sign_test_and_says_nothing_where_no_row_differs() -> None:
    assert mcnemar_p_value(8, 1) == pytest.approx(binomtest(8, 9, alternative="greater").pvalue)
    assert mcnemar_p_value(8, 1) == pytest.approx((9 + 1) / 2**9)
    assert mcnemar_p_value(0, 0) == 1.0


def test_holm_stops_at_the_first_that_is_not_small_enough() -> None:
    """Holm 1979: the smallest is held against alpha / n, the next against alpha / (n − 1), until one is not below."""
    assert holm([0.01, 0.04, 0.03, 0.005], alpha=0.05) == [True, False, False, True]
    assert holm([0.04], alpha=0.05) == [True]
    assert holm([0.03, 0.03], alpha=0.05) == [False, False]
    assert holm([], alpha=0.05) == []
