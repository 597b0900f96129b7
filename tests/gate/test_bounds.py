"""The bounds against published figures, against computations made another way, and against chance at the margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from tunegate.gate.betting import betting_bounds
from tunegate.gate.bounds import rows_needed, tango_bounds, wilson_bounds


@pytest.mark.parametrize(
    ("gains", "losses", "rows", "alpha", "lower", "upper"),
    [
        (28, 25, 618, 0.05, -0.0148, 0.0247),  # R, PropCIs::scoreci.mp(25, 28, 618), 90 %
        (1, 7, 21, 0.025, -0.517, -0.026),  # R, ratesci::pairbinci(c(1, 1, 7, 12)) and scoreci.mp(7, 1, 21), 95 %
    ],
)
def test_tango_agrees_with_the_published_implementations(
    gains: int, losses: int, rows: int, alpha: float, lower: float, upper: float
) -> None:
    found = tango_bounds(gains, losses, rows, alpha=alpha)
    assert found == pytest.approx((lower, upper), abs=5.1e-4 if rows == 21 else 5e-5)


def _score_by_likelihood(gains: int, losses: int, rows: int, difference: float) -> float:
    """Tango's statistic with the nuisance parameter found by maximising the likelihood numerically."""

    def minus_log_likelihood(share: float) -> float:
        cells = ((gains, share + difference), (losses, share), (rows - gains - losses, 1 - 2 * share - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = rows * (2 * share + difference - difference**2)
    return float((gains - losses - rows * difference) / math.sqrt(variance))


@pytest.mark.parametrize(
    ("gains", "losses", "rows"),
    [(3, 9, 40), (9, 3, 40), (1, 0, 30), (0, 1, 30), (20, 20, 100), (40, 2, 60), (5, 30, 300)],
)
def test_tango_agrees_with_a_brute_force_profile_likelihood(gains: int, losses: int, rows: int) -> None:
    alpha, z = 0.05, norm.ppf(0.95)
    estimate = (gains - losses) / rows
    lower = brentq(lambda d: _score_by_likelihood(gains, losses, rows, d) - z, -0.999, estimate - 1e-9)
    upper = brentq(lambda d: _score_by_likelihood(gains, losses, rows, d) + z, estimate + 1e-9, 0.999)
    assert tango_bounds(gains, losses, rows, alpha=alpha) == pytest.approx((lower, upper), abs=1e-5)


def test_tango_at_the_edges_says_what_the_formula_gives_and_never_nothing() -> None:
    z2 = norm.ppf(0.95) ** 2
    assert tango_bounds(0, 0, 100, alpha=0.05) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    lower, upper = tango_bounds(10, 0, 10, alpha=0.05)
    assert 0.3 < lower < 1
    assert upper == 1.0
    assert tango_bounds(0, 10, 10, alpha=0.05) == pytest.approx((-1.0, -lower))
    assert tango_bounds(1, 0, 1, alpha=0.05)[0] < 0


def test_wilson_bounds_solve_the_score_equation() -> None:
    for successes, rows in ((0, 20), (7, 20), (20, 20)):
        for bound in wilson_bounds(successes, rows, alpha=0.05):
            if 1e-9 < bound < 1 - 1e-9:
                score = (successes / rows - bound) / math.sqrt(bound * (1 - bound) / rows)
                assert abs(score) == pytest.approx(norm.ppf(0.95))


def test_the_betting_bound_is_where_the_capital_reaches_one_over_alpha() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 40)
    lower, upper = betting_bounds(values, lowest=-1.0, highest=1.0, alpha=0.05)
    for data, bound in ((values, lower), (-values, -upper)):
        unit, mean = (data + 1) / 2, (bound + 1) / 2
        capital, best, seen, squares = 1.0, 1.0, 0.5, 0.25
        for t, value in enumerate(unit):
            bet = min(math.sqrt(2 * math.log(20) / (40 * squares / (t + 1 if t else 1))), 0.75 / mean)
            capital *= 1 + bet * (value - mean)
            best = max(best, capital)
            seen += value
            squares += (value - seen / (t + 2)) ** 2
        assert best == pytest.approx(20, rel=1e-6)
    assert lower < values.mean() < upper


def test_a_declared_loss_limit_makes_the_bound_useful() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 0.1, 100)
    assert betting_bounds(differences, lowest=-20.0, highest=20.0, alpha=0.05)[0] < -0.5
    assert betting_bounds(differences, lowest=-1.0, highest=20.0, alpha=0.05)[0] > -0.1


def test_the_rows_needed_are_about_where_it_would_be_shown() -> None:
    assert rows_needed(10, lambda rows: rows >= 700) == pytest.approx(700, rel=0.03)
    assert rows_needed(10, lambda rows: False) is None
