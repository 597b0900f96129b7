"""The noise floor of leads: what rounding overturned counts, and not how far it moves a lead that stays one."""

from __future__ import annotations

import pytest

from tunegate.models.reading import SAFETY, Move, Noise, Place, noise_of


def place(gap: float, *moves: float) -> Place:
    return Place(-1.0, 7, -1.0, 8, gap, tuple(Move(gap=move, logprob=0.1, best_logprob=0.1) for move in moves))


def test_the_largest_lead_that_rounding_overturned_makes_the_floor() -> None:
    found = noise_of([place(0.5, 0.2, 0.6), place(2.0, 2.0, 0.1), place(3.0, 0.1, 0.2)])
    assert found.overturned == (0.5, 2.0)
    assert found.gap_floor == SAFETY * 2.0


def test_a_large_lead_that_moves_far_and_stays_one_excuses_no_other_token() -> None:
    quiet = [place(5.0, 0.01) for _ in range(999)]
    assert noise_of([*quiet, place(9.0, 4.0)]).gap_floor == pytest.approx(SAFETY * 0.01)


def test_where_nothing_was_overturned_the_usual_moves_make_the_floor() -> None:
    found = noise_of([place(5.0, move / 100) for move in range(101)])
    assert found.overturned == ()
    assert found.gap_floor == pytest.approx(SAFETY * 0.99)
    assert Noise((), ()).gap_floor == 0.0
