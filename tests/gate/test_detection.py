"""What a policy can show is said before anything is spent, and is what happens afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from tunegate.gate.detection import ASSUMED_DISCORDANCE, WANTED_POWER, detections
from tunegate.gate.exact import refuted
from tunegate.gate.policy import parse_policy

MARGIN = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.05}


def test_few_rows_are_said_to_show_nothing_and_the_rows_that_would_do_do() -> None:
    policy = parse_policy({"checks": [MARGIN]})
    (few,) = detections(policy, 60)
    assert few.too_few
    assert "with 60 rows" in few.told()
    (enough,) = detections(policy, round(few.rows_wanted * 1.1))
    assert not enough.too_few
    assert enough.passes_equal == pytest.approx(WANTED_POWER, abs=0.1)


def test_what_is_said_is_how_often_it_happens() -> None:
    (found,) = detections(parse_policy({"checks": [MARGIN]}), 200)
    drawn = np.random.default_rng(6).multinomial(200, [ASSUMED_DISCORDANCE / 2] * 2 + [1 - ASSUMED_DISCORDANCE], 20_000)
    happened = refuted(drawn[:, 0], drawn[:, 1], 200, -0.05, alpha=0.05).mean()
    assert found.passes_equal == pytest.approx(happened, abs=0.015)
    assert found.passes_half < found.passes_equal


def test_nothing_is_said_of_checks_whose_rows_or_scores_are_not_known() -> None:
    others = [
        {**MARGIN, "slice": "kind=rare"},
        {**MARGIN, "metric": "nll", "score_range": [0, 20]},
        {"task": "t", "metric": "m", "candidate": "quantized", "floor": 0.5},
        {"task": "t", "metric": "m", "candidate": "merged", "reference": "base", "required_gain": 0.2},
    ]
    assert [one.rule.margin for one in detections(parse_policy({"checks": [MARGIN, *others]}), 100)] == [0.05]
